//! What is asked of the daemon for a call.

use super::environments::Programs;
use super::policy::{Grant, Policy};
use super::run::Run;
use crate::api::client::{Client, ClientError};
use crate::api::types::{
    CreateRequest, EvaluateRequest, ExecRequest, Isolation, MountRequest, RunRequest, Workspace,
};
use crate::spec::protection::milliseconds;
use bytes::Bytes;
use firn_protocol::{Stdin, Text};
use std::time::Duration;

/// The most output that is passed on. A result has room for far less; what a flood has beyond it is dropped where it
/// comes from.
const MOST_OUTPUT: u64 = 64 << 20;

/// Code that is to be run, and where.
#[derive(Clone, Debug)]
pub(super) struct Job {
    pub(super) grant: Grant,
    pub(super) code: String,
    /// The daemon's name of the session it is run in.
    pub(super) session: Option<String>,
    pub(super) isolation: Isolation,
    /// Whom the sandbox is made for.
    pub(super) owner: String,
    pub(super) idle_timeout: Option<Duration>,
    pub(super) lifetime: Option<Duration>,
}

impl Job {
    /// Has the daemon begin it.
    pub(super) async fn begin(self, client: &Client, policy: &Policy) -> Result<Run, ClientError> {
        let sandbox = self.sandbox(policy);
        let timeout_ms = self.grant.timeout.map(|time| milliseconds(time).max(1));
        // A wrapper runs what it reads; all else that runs code is an interpreter.
        let by_stdin = match &self.grant.environment.programs {
            Programs::Wrapper(_) => self.session.is_none(),
            Programs::Host | Programs::Folder(_) | Programs::Unbuilt => false,
        };
        if by_stdin {
            let command = ExecRequest {
                argv: Vec::new(),
                cwd: None,
                env: Vec::new(),
                user: None,
                terminal: None,
                stdin: Stdin::Stream,
                timeout_ms,
                max_output_bytes: Some(MOST_OUTPUT),
                detach: false,
            };
            let stream = client.run(&RunRequest { sandbox, command }).await?;
            return Ok(Run::reading(stream, Bytes::from(self.code)));
        }
        let in_session = self.session.is_some();
        let request = EvaluateRequest {
            session: self.session,
            sandbox: Some(sandbox),
            code: Text::from(self.code.as_str()),
            stdin: Stdin::Null,
            timeout_ms,
            grace_ms: None,
            max_output_bytes: Some(MOST_OUTPUT),
        };
        Ok(Run::of_code(client.evaluate(&request).await?, in_session))
    }

    fn sandbox(&self, policy: &Policy) -> CreateRequest {
        let environment = &self.grant.environment;
        let mut request = CreateRequest {
            owner: Some(self.owner.clone()),
            isolation: Some(self.isolation),
            allow_degraded: policy.allow_degraded,
            environment: Some(match &environment.programs {
                Programs::Host | Programs::Unbuilt => Text::from(environment.name.as_str()),
                Programs::Folder(folder) | Programs::Wrapper(folder) => Text::from(folder.clone()),
            }),
            memory_bytes: policy.memory,
            idle_timeout_ms: self.idle_timeout.map(milliseconds),
            lifetime_ms: self.lifetime.map(milliseconds),
            ..CreateRequest::default()
        };
        if self.session.is_none() {
            (request.idle_timeout_ms, request.lifetime_ms) = (None, None);
        }
        let Some(project) = &policy.project else { return request };
        let host = Text::from(project.folder.clone());
        match &environment.programs {
            // A wrapper shows a project where it likes.
            Programs::Wrapper(_) => request.workspace = Some(Workspace { host, access: project.access }),
            Programs::Host | Programs::Folder(_) | Programs::Unbuilt => {
                let target = Text::from(project.target.clone());
                request.mounts.push(MountRequest { host, target, access: project.access });
            }
        }
        request
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mcp::environments::Known;
    use crate::mcp::policy::Project;
    use firn_protocol::Access;

    fn job(programs: Programs, session: Option<&str>) -> Job {
        let environment = Known { name: "python".into(), programs, timeout: None, isolation: None };
        Job {
            grant: Grant { environment, isolation: None, timeout: None },
            code: String::new(),
            session: session.map(str::to_owned),
            isolation: Isolation::Jail,
            owner: "mcp".into(),
            idle_timeout: Some(Duration::from_secs(1)),
            lifetime: Some(Duration::from_secs(2)),
        }
    }

    #[test]
    fn a_project_is_mounted_or_told_to_a_wrapper() {
        let mut policy = Policy::new(None, Vec::new()).unwrap();
        policy.project =
            Some(Project { folder: "/home/p".into(), target: "/project".into(), access: Access::ReadOnly });
        let mounted = job(Programs::Host, None).sandbox(&policy);
        assert_eq!(mounted.environment, Some("python".into()));
        assert_eq!((mounted.mounts.len(), mounted.workspace), (1, None));
        assert_eq!(mounted.mounts[0].target, "/project".into());
        let wrapped = job(Programs::Wrapper("/env".into()), None).sandbox(&policy);
        assert_eq!(wrapped.environment, Some("/env".into()));
        assert_eq!((wrapped.mounts.len(), wrapped.workspace.is_some()), (0, true));
    }

    #[test]
    fn only_sessions_have_times() {
        let policy = Policy::new(None, Vec::new()).unwrap();
        assert_eq!(job(Programs::Host, None).sandbox(&policy).lifetime_ms, None);
        assert_eq!(job(Programs::Host, Some("s")).sandbox(&policy).lifetime_ms, Some(2000));
    }
}
