"""What an agent says first: python3 session.py PROGRAM SOCKET starts PROGRAM with a listening socket as descriptor 3."""

import os
import socket
import subprocess
import sys

listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[2])
listener.listen()
os.dup2(listener.fileno(), 3)
agent = subprocess.Popen([sys.argv[1]], pass_fds=[3], env={}, stdin=subprocess.DEVNULL)
with socket.socket(socket.AF_UNIX) as connection:
    connection.settimeout(30)
    connection.connect(sys.argv[2])
    # A frame's head is binary: what is wanted is the text behind it (9 bytes).
    print(connection.recv(4096)[9:].decode("utf-8", "replace"))
agent.terminate()
agent.wait()
