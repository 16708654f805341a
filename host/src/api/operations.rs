//! All operations of the API, in one table: the daemon serves exactly what is in it, and the OpenAPI
//! document describes exactly that.

use super::routes;
use super::service::Service;
use super::types::{
    AttachRequest, CreateRequest, DaemonInfo, DaemonStopRequest, EvaluateRequest, EventRecord, ExecRequest,
    InterruptRequest, Interrupted, Notice, ProcessRow, Pruned, Refusal, RenewRequest, RunRequest,
    SandboxInfo, SessionInfo, SessionRequest, StatsInfo, StopRequest, UpdateRequest,
};
use super::wire;
use axum::routing::{MethodRouter, delete, get, patch, post, put};
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::{Map, Value, json};

/// Makes the schema of a type.
type SchemaOf = fn(&mut SchemaGenerator) -> Schema;

fn schema_of<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    generator.subschema_for::<T>()
}

/// Something that can be asked of the daemon.
pub(super) struct Operation {
    /// Its name, for programs.
    id: &'static str,
    method: &'static str,
    path: &'static str,
    /// One sentence.
    summary: &'static str,
    query: Option<SchemaOf>,
    request: Option<Content>,
    answers: Vec<Answer>,
    /// What serves it.
    pub(super) handler: MethodRouter<Service>,
}

/// An answer that is no refusal.
struct Answer {
    status: u16,
    summary: &'static str,
    content: Option<Content>,
}

/// What is in a body.
#[derive(Clone, Copy)]
enum Content {
    Json(SchemaOf),
    /// One JSON object a line.
    Lines(SchemaOf),
    Raw(&'static str),
}

impl Content {
    fn media_type(self) -> &'static str {
        match self {
            Content::Json(_) => wire::JSON,
            Content::Lines(_) => wire::LINES,
            Content::Raw(media_type) => media_type,
        }
    }

    fn document(self, generator: &mut SchemaGenerator) -> Value {
        match self {
            Content::Json(schema) | Content::Lines(schema) => json!({ "schema": schema(generator) }),
            Content::Raw(_) => json!({}),
        }
    }
}

impl Operation {
    fn new(
        id: &'static str,
        method: &'static str,
        path: &'static str,
        summary: &'static str,
        handler: MethodRouter<Service>,
    ) -> Operation {
        let (query, request, answers) = (None, None, Vec::new());
        Operation { id, method, path, summary, query, request, answers, handler }
    }

    /// Its path, as the router takes it.
    pub(super) fn full_path(&self) -> String {
        // What programs that know nothing of firn ask for is where they look for it.
        if matches!(self.path, "/metrics") { self.path.to_owned() } else { format!("/v1{}", self.path) }
    }

    fn query<T: JsonSchema>(mut self) -> Operation {
        // Described where it is used, not among the types that are sent.
        self.query = Some(T::json_schema);
        self
    }

    fn asks<T: JsonSchema>(mut self) -> Operation {
        self.request = Some(Content::Json(schema_of::<T>));
        self
    }

    fn asks_raw(mut self, media_type: &'static str) -> Operation {
        self.request = Some(Content::Raw(media_type));
        self
    }

    fn answer(mut self, status: u16, summary: &'static str, content: Option<Content>) -> Operation {
        self.answers.push(Answer { status, summary, content });
        self
    }

    fn json<T: JsonSchema>(self, summary: &'static str) -> Operation {
        self.answer(200, summary, Some(Content::Json(schema_of::<T>)))
    }

    fn lines<T: JsonSchema>(self, summary: &'static str) -> Operation {
        self.answer(200, summary, Some(Content::Lines(schema_of::<T>)))
    }

    fn raw(self, media_type: &'static str, summary: &'static str) -> Operation {
        self.answer(200, summary, Some(Content::Raw(media_type)))
    }

    fn nothing(self, summary: &'static str) -> Operation {
        self.answer(204, summary, None)
    }

    fn frames(self) -> Operation {
        self.answer(
            101,
            "The connection carries frames from here on: notices with id 0, those of the command with id 1.",
            None,
        )
    }
}

/// All of them.
pub(super) fn all() -> Vec<Operation> {
    vec![
        Operation::new(
            "run",
            "post",
            "/run",
            "Run a command in a sandbox that ends with this connection.",
            post(routes::run),
        )
        .asks::<RunRequest>()
        .frames(),
        Operation::new("create", "post", "/sandboxes", "Make a sandbox.", post(routes::create))
            .asks::<CreateRequest>()
            .answer(201, "It is there.", Some(Content::Json(schema_of::<SandboxInfo>)))
            .lines::<Notice>("How it comes up, for who accepts application/x-ndjson."),
        Operation::new("list", "get", "/sandboxes", "All sandboxes, the oldest first.", get(routes::list))
            .query::<routes::ListQuery>()
            .json::<Vec<SandboxInfo>>("They."),
        Operation::new(
            "sandbox",
            "get",
            "/sandboxes/{id}",
            "A sandbox, by its name, its id, or the start of its id.",
            get(routes::sandbox),
        )
        .json::<SandboxInfo>("As it is now."),
        Operation::new(
            "update",
            "patch",
            "/sandboxes/{id}",
            "Change what can be changed.",
            patch(routes::update),
        )
        .asks::<UpdateRequest>()
        .json::<SandboxInfo>("As it is now."),
        Operation::new(
            "destroy",
            "delete",
            "/sandboxes/{id}",
            "End it at once and forget it.",
            delete(routes::destroy),
        )
        .nothing("Nothing of it is left."),
        Operation::new("exec", "post", "/sandboxes/{id}/exec", "Run a command in it.", post(routes::exec))
            .asks::<ExecRequest>()
            .frames(),
        Operation::new(
            "evaluate",
            "post",
            "/evaluate",
            "Run code in a session, which is made if there is none, or in a sandbox that ends with it. After the \
             last notice the connection takes more code: a request frame with a higher number than the frames \
             so far, whose body is another such request.",
            post(routes::evaluate),
        )
        .asks::<EvaluateRequest>()
        .frames(),
        Operation::new(
            "sessions",
            "get",
            "/sessions",
            "All sessions, the oldest first.",
            get(routes::sessions),
        )
        .json::<Vec<SessionInfo>>("They."),
        Operation::new(
            "createSession",
            "post",
            "/sessions",
            "Start an interpreter that lives on between runs of code.",
            post(routes::create_session),
        )
        .asks::<SessionRequest>()
        .answer(201, "It takes code.", Some(Content::Json(schema_of::<SessionInfo>)))
        .lines::<Notice>("How it comes up, for who accepts application/x-ndjson."),
        Operation::new(
            "session",
            "get",
            "/sessions/{name}",
            "A session, by its name.",
            get(routes::session),
        )
        .json::<SessionInfo>("As it is now."),
        Operation::new(
            "interrupt",
            "post",
            "/sessions/{name}/interrupt",
            "End what a session runs. Its state is kept if that ends in time.",
            post(routes::interrupt),
        )
        .asks::<InterruptRequest>()
        .json::<Interrupted>("What was done."),
        Operation::new(
            "closeSession",
            "delete",
            "/sessions/{name}",
            "End a session, with its sandbox if that is its own.",
            delete(routes::close_session),
        )
        .nothing("Nothing of it is left."),
        Operation::new(
            "attach",
            "post",
            "/sandboxes/{id}/attach",
            "The output so far of a detached command, and what follows.",
            post(routes::attach),
        )
        .asks::<AttachRequest>()
        .frames(),
        Operation::new("pause", "post", "/sandboxes/{id}/pause", "Have it stand still.", post(routes::pause))
            .json::<SandboxInfo>("As it is now."),
        Operation::new("resume", "post", "/sandboxes/{id}/resume", "Have it go on.", post(routes::resume))
            .json::<SandboxInfo>("As it is now."),
        Operation::new(
            "stop",
            "post",
            "/sandboxes/{id}/stop",
            "End it, orderly if there is time, and keep its record.",
            post(routes::stop),
        )
        .asks::<StopRequest>()
        .json::<SandboxInfo>("As it is now."),
        Operation::new(
            "processes",
            "get",
            "/sandboxes/{id}/processes",
            "Its processes.",
            get(routes::processes),
        )
        .json::<Vec<ProcessRow>>("They."),
        Operation::new(
            "stats",
            "get",
            "/sandboxes/{id}/stats",
            "What it uses of the host.",
            get(routes::stats),
        )
        .json::<StatsInfo>("Now."),
        Operation::new(
            "logs",
            "get",
            "/sandboxes/{id}/logs",
            "What a detached command has written.",
            get(routes::logs),
        )
        .query::<routes::LogsQuery>()
        .raw(wire::BYTES, "Its bytes."),
        Operation::new(
            "console",
            "get",
            "/sandboxes/{id}/console",
            "The last of its console.",
            get(routes::console),
        )
        .raw(wire::BYTES, "Its bytes."),
        Operation::new(
            "archive",
            "get",
            "/sandboxes/{id}/archive",
            "A file or a folder of its own, packed.",
            get(routes::archive),
        )
        .query::<routes::ArchiveQuery>()
        .raw(
            wire::TAR,
            "A tar archive. The trailer firn-left-out, for who takes trailers, counts what is not in it.",
        ),
        Operation::new(
            "unpack",
            "put",
            "/sandboxes/{id}/archive",
            "Unpack into a folder of its own.",
            put(routes::unpack),
        )
        .query::<routes::ArchiveQuery>()
        .asks_raw(wire::TAR)
        .nothing("It is there, but for as much as the header firn-left-out says."),
        Operation::new(
            "events",
            "get",
            "/events",
            "What happened to sandboxes, the oldest first.",
            get(routes::events),
        )
        .query::<routes::EventsQuery>()
        .lines::<EventRecord>("One a line."),
        Operation::new(
            "renew",
            "put",
            "/leases/{owner}",
            "Renew the leases of all of an owner's sandboxes.",
            put(routes::renew),
        )
        .asks::<RenewRequest>()
        .json::<Vec<SandboxInfo>>("These."),
        Operation::new("prune", "post", "/prune", "Forget the sandboxes that are over.", post(routes::prune))
            .json::<Pruned>("These."),
        Operation::new("daemon", "get", "/daemon", "The daemon itself.", get(routes::daemon))
            .json::<DaemonInfo>("As it is now."),
        Operation::new(
            "stop-daemon",
            "post",
            "/daemon/stop",
            "Have the daemon stop.",
            post(routes::stop_daemon),
        )
        .asks::<DaemonStopRequest>()
        .raw(wire::BYTES, "Empty, and ends with the daemon."),
        Operation::new("openapi", "get", "/openapi.json", "This document.", get(routes::openapi))
            .raw(wire::JSON, "This document."),
        Operation::new(
            "metrics",
            "get",
            "/metrics",
            "Counters, in Prometheus' text format.",
            get(routes::metrics),
        )
        .raw(wire::METRICS, "They."),
    ]
}

/// The OpenAPI 3.1 document of all operations (<https://spec.openapis.org/oas/v3.1.0>).
pub(crate) fn document() -> Value {
    let mut generator = SchemaSettings::draft2020_12()
        .with(|settings| {
            settings.definitions_path = "/components/schemas".into();
            settings.meta_schema = None;
        })
        .into_generator();
    let mut paths: Map<String, Value> = Map::new();
    for operation in all() {
        let described = describe(&operation, &mut generator);
        let path = paths.entry(operation.full_path()).or_insert_with(|| json!({}));
        path[operation.method] = described;
    }
    let refusal = schema_of::<Refusal>(&mut generator);
    // What is on the streams of commands is no body of any answer.
    let _ = schema_of::<Notice>(&mut generator);
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "firn",
            "summary": "Disposable sandboxes on this host.",
            "description": "HTTP/1.1 on a Unix socket. Commands are upgraded connections (`Upgrade: firn-frames`) \
                            that carry the frames of firn's protocol; the bodies of frames with id 0 are `Notice`s.",
            "license": { "name": "MIT OR Apache-2.0", "identifier": "MIT OR Apache-2.0" },
            "version": super::types::API_VERSION.to_string(),
        },
        "paths": paths,
        "components": {
            "schemas": generator.take_definitions(true),
            "responses": {
                "Refusal": {
                    "description": "Why not.",
                    "content": { wire::JSON: { "schema": refusal } },
                }
            }
        },
    })
}

fn describe(operation: &Operation, generator: &mut SchemaGenerator) -> Value {
    let mut described = json!({ "operationId": operation.id, "summary": operation.summary });
    let mut parameters = path_parameters(operation.path);
    if let Some(query) = operation.query {
        parameters.extend(query_parameters(query, generator));
    }
    if !parameters.is_empty() {
        described["parameters"] = parameters.into();
    }
    if let Some(content) = operation.request {
        described["requestBody"] =
            json!({ "content": { content.media_type(): content.document(generator) } });
    }
    let mut responses: Map<String, Value> = Map::new();
    for Answer { status, summary, content } in &operation.answers {
        let mut answer = json!({ "description": summary });
        if let Some(content) = content {
            answer["content"] = json!({ content.media_type(): content.document(generator) });
        }
        responses.insert(status.to_string(), answer);
    }
    responses.insert("default".to_owned(), json!({ "$ref": "#/components/responses/Refusal" }));
    described["responses"] = responses.into();
    described
}

fn path_parameters(path: &str) -> Vec<Value> {
    let named = path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
    named
        .map(|name| json!({ "name": name, "in": "path", "required": true, "schema": { "type": "string" } }))
        .collect()
}

/// The fields of the query's type, which is flat.
fn query_parameters(query: SchemaOf, generator: &mut SchemaGenerator) -> Vec<Value> {
    let schema = query(generator);
    let required = |name: &str| {
        let required = schema.get("required").and_then(Value::as_array);
        required.is_some_and(|required| required.iter().any(|field| field == name))
    };
    let Some(Value::Object(properties)) = schema.get("properties") else { return Vec::new() };
    let parameter = |(name, schema): (&String, &Value)| {
        let mut schema = schema.clone();
        let description = schema.as_object_mut().and_then(|schema| schema.remove("description"));
        json!({ "name": name, "in": "query", "required": required(name), "description": description, "schema": schema })
    };
    properties.iter().map(parameter).collect()
}
