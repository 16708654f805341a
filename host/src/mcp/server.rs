//! The server: what it answers to each request of a client, whichever way that came.

use super::answer::{Call, add_files};
use super::arguments::Arguments;
use super::background::{Background, Kept};
use super::captured::Streams;
use super::environments::Environments;
use super::files::{self, Address, FileError, Left};
use super::job::Job;
use super::policy::{Denied, Grant, Policy};
use super::progress::Progress;
use super::run::{End, Failure, Finished, Run, Shared};
use super::session::{Principal, Sessions, Turn};
use super::words;
use crate::api::client::Client;
use crate::causes::in_full;
use crate::config::Config;
use rmcp::model::{
    CallToolRequestParams, CallToolResponse, CallToolResult, Implementation, ListResourceTemplatesResult,
    ListResourcesResult, ListToolsResult, PaginatedRequestParams, ReadResourceRequestParams,
    ReadResourceResponse, ReadResourceResult, ResourceContents, ServerCapabilities, ServerConfig, Tool,
};
use rmcp::service::RequestContext;
use rmcp::{ErrorData, RoleServer, ServerHandler};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How long a call waits for a background run, when it does not say.
const USUAL_WAIT: Duration = Duration::from_secs(30);

/// How many random bytes are in the name of a session that nobody named.
const RANDOM: usize = 4;

/// What all clients of a server have in common.
#[derive(Debug)]
struct Common {
    client: Client,
    config: Arc<Config>,
    policy: Policy,
    environments: Environments,
    sessions: Sessions,
    background: Background,
    left: Left,
    tool: Tool,
    /// The calls under way.
    work: TaskTracker,
}

/// The server, as one client sees it.
#[derive(Clone, Debug)]
pub(crate) struct Server {
    common: Arc<Common>,
    principal: Principal,
}

impl Server {
    /// One for the daemon that `config` says.
    pub(crate) fn new(config: Config, policy: Policy, environments: Environments) -> Server {
        let tool = words::tool(&policy, &environments.names());
        let common = Common {
            client: Client::new(config.clone()),
            config: Arc::new(config),
            policy,
            environments,
            sessions: Sessions::default(),
            background: Background::default(),
            left: Left::default(),
            tool,
            work: TaskTracker::new(),
        };
        Server { common: Arc::new(common), principal: Principal::default() }
    }

    /// The same, as another client sees it.
    pub(super) fn of(&self, principal: Principal) -> Server {
        Server { common: Arc::clone(&self.common), principal }
    }

    /// The calls under way. They end when they are cancelled, with all that ends with them.
    pub(super) fn work(&self) -> &TaskTracker {
        &self.common.work
    }

    async fn run(
        &self,
        asked: Arguments,
        progress: Option<Progress>,
        cancelled: &CancellationToken,
    ) -> Result<CallToolResult, ErrorData> {
        let Common { policy, environments, background, .. } = &*self.common;
        let mut call = Call {
            env: asked.env.clone(),
            session: asked.session.clone(),
            isolation: asked.isolation.unwrap_or(policy.isolation(None)),
            timeout: asked.timeout(),
            names: Vec::new(),
        };
        let grant = match policy.admit(&asked, environments) {
            Ok(grant) => grant,
            Err(denied @ Denied::Environment { .. }) => {
                return Err(ErrorData::invalid_params(denied.to_string(), None));
            }
            Err(denied) => return Ok(call.failed(Failure::of_caller(denied.to_string()))),
        };
        call.timeout = grant.timeout;
        if asked.background() && call.session.is_none() {
            let random = random_name().map_err(|error| ErrorData::internal_error(error.to_string(), None))?;
            call.session = Some(random);
        }
        let session = call.session.as_deref().map(|session| self.principal.session(session));
        call.names.extend(session.clone().zip(call.session.clone()));
        if let Some(session) = &session
            && let Some(kept) = background.get(session)
        {
            if !kept.is_interrupted() {
                return Ok(self.collect(&call, &asked, session, &kept, cancelled).await);
            }
            let _ = kept.over().await;
            background.forget(session, &kept);
        }
        let begun = match self.begin(&mut call, asked.clone(), grant, session.as_deref()).await {
            Ok(begun) => begun,
            Err(failure) => return Ok(call.failed(failure)),
        };
        Ok(self.follow(&call, &asked, begun, session.as_deref(), progress, cancelled).await)
    }

    /// Has the daemon begin what was asked.
    async fn begin(
        &self,
        call: &mut Call,
        asked: Arguments,
        mut grant: Grant,
        session: Option<&str>,
    ) -> Result<(Run, Option<Turn>), Failure> {
        let Common { client, config, policy, environments, sessions, .. } = &*self.common;
        let built = environments.built(grant.environment, config).await;
        grant.environment = built.map_err(|error| Failure::of_sandbox(in_full(&error)))?;
        call.names.extend(grant.environment.folder().map(|folder| (folder, grant.environment.name.clone())));
        let owner = self.principal.owner();
        let mut turn = None;
        if let Some(session) = session {
            if grant.isolation.is_none() {
                let otherwise = policy.isolation(Some(&grant.environment));
                let isolation = sessions.isolation(session, client, otherwise).await?;
                if !policy.allows(isolation) {
                    let message =
                        format!("the session is in a {}, which may not be used here", isolation.name());
                    return Err(Failure::of_caller(message));
                }
                grant.isolation = Some(isolation);
            }
            turn = sessions.admit(session, &owner, client, policy).await?;
        }
        call.isolation = grant.isolation.unwrap_or(call.isolation);
        let job = Job {
            isolation: call.isolation,
            grant,
            code: asked.code,
            session: session.map(str::to_owned),
            owner,
            idle_timeout: config.session_idle_timeout,
            lifetime: config.session_lifetime,
        };
        let run = job.begin(client, policy).await.map_err(|error| call.in_its_words(error.into()))?;
        Ok((run, turn))
    }

    async fn follow(
        &self,
        call: &Call,
        asked: &Arguments,
        (run, mut turn): (Run, Option<Turn>),
        session: Option<&str>,
        progress: Option<Progress>,
        cancelled: &CancellationToken,
    ) -> CallToolResult {
        let background = &self.common.background;
        if let (true, Some(session)) = (asked.background(), session) {
            let Some(kept) = background.keep(session, run) else { return call.failed(uncollected(call)) };
            let ended = tokio::select! {
                ended = kept.started() => ended,
                () = cancelled.cancelled() => {
                    kept.interrupt();
                    kept.over().await
                }
            };
            return match ended {
                None => call.running(&kept.take()),
                Some(finished) => {
                    background.forget(session, &kept);
                    self.conclude(call, Some(session), &kept.take(), finished)
                }
            };
        }
        let streams = Shared::default();
        let finished = run.finish(&streams, progress, cancelled, || drop(turn.take())).await;
        self.conclude(call, session, &streams.take(), finished)
    }

    /// What a run in the background has written since it was last asked, when it is over, or the time is.
    async fn collect(
        &self,
        call: &Call,
        asked: &Arguments,
        session: &str,
        kept: &Kept,
        cancelled: &CancellationToken,
    ) -> CallToolResult {
        let background = &self.common.background;
        if !asked.code.trim().is_empty() {
            return call.failed(uncollected(call));
        }
        let most = self.common.policy.most_time.unwrap_or(Duration::MAX);
        let wait = asked.timeout().unwrap_or(USUAL_WAIT).min(most);
        let ended = match asked.background() {
            true => kept.ended(),
            false => tokio::select! {
                ended = tokio::time::timeout(wait, kept.over()) => ended.unwrap_or(None),
                () = cancelled.cancelled() => {
                    kept.interrupt();
                    kept.over().await
                }
            },
        };
        match ended {
            Some(finished) => {
                background.forget(session, kept);
                self.conclude(call, Some(session), &kept.take(), finished)
            }
            None => call.running(&kept.take()),
        }
    }

    /// What the caller is told of a run that is over.
    fn conclude(
        &self,
        call: &Call,
        session: Option<&str>,
        streams: &Streams,
        mut finished: Finished,
    ) -> CallToolResult {
        if let (Some(name), Some(info)) = (session, &finished.session) {
            self.common.sessions.remember(name, info.isolation);
        }
        if let End::Failed(failure) = finished.end {
            finished.end = End::Failed(call.in_its_words(failure));
        }
        let mut result = call.over(streams, &finished);
        // What a sandbox of its own has left is gone with it.
        if let (Some(asked), Some(artifacts)) = (&call.session, &finished.artifacts) {
            add_files(&mut result, self.common.left.add(&self.principal, asked, artifacts));
        }
        result
    }

    /// The content of a file of a session.
    async fn read(&self, uri: &str) -> Result<ResourceContents, FileError> {
        let Common { client, left, .. } = &*self.common;
        let address = Address::parse(uri)?;
        let session = client.session(&self.principal.session(&address.session)).await?;
        let content = files::read(client.archive(&session.sandbox, &address.path).await?).await?;
        let listed = left.list(&self.principal, |_| true).into_iter().find(|file| file.uri == uri);
        Ok(files::contents(uri, listed.and_then(|file| file.mime_type), content))
    }
}

fn uncollected(call: &Call) -> Failure {
    let session = call.session.as_deref().unwrap_or_default();
    Failure::of_caller(format!(
        "Session '{session}' has a run in the background.\nCall run with it and empty code to collect the output first."
    ))
}

fn random_name() -> Result<String, getrandom::Error> {
    let mut bytes = [0; RANDOM];
    getrandom::fill(&mut bytes)?;
    Ok(format!("background-{:08x}", u32::from_ne_bytes(bytes)))
}

impl ServerHandler for Server {
    fn get_info(&self) -> ServerConfig {
        ServerConfig::new(ServerCapabilities::builder().enable_tools().enable_resources().build())
            .with_server_info(Implementation::new("firn", env!("CARGO_PKG_VERSION")))
            .with_instructions(words::instructions(&self.common.policy))
    }

    async fn list_tools(
        &self,
        _request: Option<PaginatedRequestParams>,
        _context: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        Ok(ListToolsResult::with_all_items(vec![self.common.tool.clone()]))
    }

    fn get_tool(&self, name: &str) -> Option<Tool> {
        (name == words::TOOL).then(|| self.common.tool.clone())
    }

    async fn list_resources(
        &self,
        _request: Option<PaginatedRequestParams>,
        _context: RequestContext<RoleServer>,
    ) -> Result<ListResourcesResult, ErrorData> {
        let sessions = match self.common.client.sessions().await {
            Ok(sessions) => sessions,
            Err(error) => return Err(ErrorData::internal_error(in_full(&error), None)),
        };
        let lives = |session: &str| {
            let name = self.principal.session(session);
            sessions.iter().any(|session| session.name == name)
        };
        Ok(ListResourcesResult::with_all_items(self.common.left.list(&self.principal, lives)))
    }

    async fn list_resource_templates(
        &self,
        _request: Option<PaginatedRequestParams>,
        _context: RequestContext<RoleServer>,
    ) -> Result<ListResourceTemplatesResult, ErrorData> {
        Ok(ListResourceTemplatesResult::with_all_items(vec![files::template()]))
    }

    async fn read_resource(
        &self,
        request: ReadResourceRequestParams,
        _context: RequestContext<RoleServer>,
    ) -> Result<ReadResourceResponse, ErrorData> {
        match Box::pin(self.read(&request.uri)).await {
            Ok(contents) => Ok(ReadResourceResult::new(vec![contents]).into()),
            Err(error) => {
                let data = serde_json::json!({ "uri": request.uri });
                Err(ErrorData::resource_not_found(in_full(&error), Some(data)))
            }
        }
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let _under_way = self.common.work.token();
        if request.name != words::TOOL {
            return Err(ErrorData::invalid_params(format!("Unknown tool: '{}'", request.name), None));
        }
        let asked = Arguments::read(request.arguments)
            .map_err(|error| ErrorData::invalid_params(in_full(&error), None))?;
        let token = context.meta.get_progress_token();
        let progress = token.map(|token| Progress::new(context.peer.clone(), token));
        // It is boxed because it is large, and rmcp moves it about.
        Box::pin(self.run(asked, progress, &context.ct)).await.map(CallToolResponse::Complete)
    }
}
