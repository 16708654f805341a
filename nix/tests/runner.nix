# The failures among tests, as a list of texts. A test is { expr, expected } or, where evaluation is to be refused,
# { expr, refused = true }.
tests:
let
  show = value: builtins.toJSON value;
  failure =
    name: test:
    let
      result = builtins.tryEval (builtins.deepSeq test.expr test.expr);
    in
    if test.refused or false then
      if result.success then [ "${name}: it was not refused, but gave ${show result.value}" ] else [ ]
    else if !result.success then
      [ "${name}: evaluation failed" ]
    else if result.value != test.expected then
      [ "${name}: expected ${show test.expected}, got ${show result.value}" ]
    else
      [ ];
in
builtins.concatLists (builtins.attrValues (builtins.mapAttrs failure tests))
