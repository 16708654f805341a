//! Every call we make, held against the OpenAPI file that cloud-hypervisor publishes.
//!
//! cloud-hypervisor itself accepts anything (`{}` is a machine to it), so here a property that the
//! file does not define is an error, as is one that it requires and we do not send.

use super::client::{BOOT, CREATE, Call, INFO, Info, PAUSE, PING, Ping, RESUME, State};
use super::config::VmConfig;
use super::config::tests::{files, machine};
use saphyr::{LoadableYamlNode as _, Scalar, Yaml};
use serde_json::{Value, json};

const PUBLISHED: &str =
    include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/contract/cloud-hypervisor.yaml"));

struct Contract(Value);

impl Contract {
    fn published() -> Contract {
        let mut documents = Yaml::load_from_str(PUBLISHED).unwrap();
        assert_eq!(documents.len(), 1);
        Contract(to_json(documents.remove(0)))
    }

    /// The method's entry of the call's path.
    fn operation(&self, call: &Call) -> &Value {
        let path = format!("/{}", call.name);
        let method = call.method.as_str().to_ascii_lowercase();
        let operation = &self.0["paths"][path.as_str()][method.as_str()];
        assert!(operation.is_object(), "{method} {path} is not in the contract");
        operation
    }

    /// The schema that `node` is or refers to.
    fn resolve<'a>(&'a self, node: &'a Value) -> &'a Value {
        match node.get("$ref") {
            Some(reference) => {
                let pointer = reference.as_str().unwrap().strip_prefix('#').unwrap();
                self.0.pointer(pointer).unwrap_or_else(|| panic!("no {pointer}"))
            }
            None => node,
        }
    }

    fn schema(&self, name: &str) -> &Value {
        self.0.pointer(&format!("/components/schemas/{name}")).unwrap()
    }

    /// What is wrong with `value` according to `schema`.
    fn faults(&self, value: &Value, schema: &Value) -> Vec<String> {
        let mut faults = Vec::new();
        self.check(value, self.resolve(schema), "", &mut faults);
        faults
    }

    fn check(&self, value: &Value, schema: &Value, path: &str, faults: &mut Vec<String>) {
        let fits = match schema["type"].as_str() {
            Some("object") => value.is_object(),
            Some("array") => value.is_array(),
            Some("string") => value.is_string(),
            Some("boolean") => value.is_boolean(),
            Some("integer") => value.is_i64() || value.is_u64(),
            other => panic!("{path}: this check knows no type {other:?}"),
        };
        if !fits {
            faults.push(format!("{path}: not of type {}", schema["type"]));
        }
        if let Some(allowed) = schema["enum"].as_array()
            && !allowed.contains(value)
        {
            faults.push(format!("{path}: {value} is none of {allowed:?}"));
        }
        if let (Some(least), Some(value)) = (schema["minimum"].as_i64(), value.as_i64())
            && value < least
        {
            faults.push(format!("{path}: {value} is less than {least}"));
        }
        for item in value.as_array().into_iter().flatten() {
            self.check(item, self.resolve(&schema["items"]), &format!("{path}[]"), faults);
        }
        for (key, value) in value.as_object().into_iter().flatten() {
            match schema["properties"].get(key) {
                Some(property) => self.check(value, self.resolve(property), &format!("{path}.{key}"), faults),
                None => faults.push(format!("{path}.{key}: unknown")),
            }
        }
        for key in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            if value.get(key).is_none() {
                faults.push(format!("{path}.{key}: required"));
            }
        }
    }
}

/// YAML as JSON; keys become strings.
fn to_json(yaml: Yaml<'_>) -> Value {
    match yaml {
        Yaml::Value(Scalar::Null) => Value::Null,
        Yaml::Value(Scalar::Boolean(boolean)) => boolean.into(),
        Yaml::Value(Scalar::Integer(integer)) => integer.into(),
        Yaml::Value(Scalar::FloatingPoint(number)) => number.into_inner().into(),
        Yaml::Value(Scalar::String(text)) => text.into(),
        Yaml::Sequence(items) => items.into_iter().map(to_json).collect(),
        Yaml::Mapping(entries) => entries
            .into_iter()
            .map(|(key, value)| {
                let key = match to_json(key) {
                    Value::String(key) => key,
                    other => other.to_string(),
                };
                (key, to_json(value))
            })
            .collect(),
        other => panic!("unexpected in the contract: {other:?}"),
    }
}

#[test]
fn every_call_exists_and_succeeds_as_we_expect() {
    let contract = Contract::published();
    assert_eq!(contract.0["servers"][0]["url"], "http://localhost/api/v1");
    for call in [PING, CREATE, INFO, BOOT, PAUSE, RESUME] {
        assert_eq!(call.path(), format!("/api/v1/{}", call.name));
        let responses = contract.operation(&call)["responses"].as_object().unwrap();
        let success: Vec<&str> =
            responses.keys().map(String::as_str).filter(|code| code.starts_with('2')).collect();
        assert_eq!(success, [call.success.as_str()], "{}", call.name);
    }
}

#[test]
fn only_create_has_a_body() {
    let contract = Contract::published();
    for call in [PING, INFO, BOOT, PAUSE, RESUME] {
        assert_eq!(contract.operation(&call).get("requestBody"), None, "{}", call.name);
    }
    let body = &contract.operation(&CREATE)["requestBody"]["content"]["application/json"]["schema"];
    assert_eq!(contract.resolve(body), contract.schema("VmConfig"));
}

#[test]
fn the_machine_is_what_the_contract_defines() {
    let contract = Contract::published();
    let config = serde_json::to_value(VmConfig::new(&machine(), files())).unwrap();
    assert_eq!(contract.faults(&config, contract.schema("VmConfig")), Vec::<String>::new());
}

#[test]
fn the_check_can_fail() {
    let contract = Contract::published();
    let good = serde_json::to_value(VmConfig::new(&machine(), files())).unwrap();
    let cases = [
        ("/memory/sharde", json!(true), ".memory.sharde: unknown"),
        ("/fs/0/tag", Value::Null, ".fs[].tag: not of type \"string\""),
        ("/serial/mode", json!("file"), ".serial.mode: \"file\" is none of"),
        ("/cpus/boot_vcpus", json!("2"), ".cpus.boot_vcpus: not of type"),
        ("/cpus/max_vcpus", json!(0), ".cpus.max_vcpus: 0 is less than 1"),
        ("/vsock/cid", json!(2), ".vsock.cid: 2 is less than 3"),
    ];
    for (pointer, value, fault) in cases {
        let mut bad = good.clone();
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        bad.pointer_mut(parent).unwrap()[key] = value;
        let faults = contract.faults(&bad, contract.schema("VmConfig"));
        assert!(faults.len() == 1 && faults[0].starts_with(fault), "{pointer}: {faults:?}");
    }
    for (parent, key) in [("", "payload"), ("/fs/1", "queue_size"), ("/console", "mode")] {
        let mut bad = good.clone();
        bad.pointer_mut(parent).unwrap().as_object_mut().unwrap().remove(key);
        assert_eq!(contract.faults(&bad, contract.schema("VmConfig")).len(), 1, "{parent}/{key}");
    }
}

#[test]
fn what_we_read_is_what_the_contract_promises() {
    let contract = Contract::published();
    let required = |schema: &str| contract.schema(schema)["required"].clone();
    assert_eq!(required("VmmPingResponse"), json!(["version"]));
    let ping = json!({"version": "v"});
    assert_eq!(contract.faults(&ping, contract.schema("VmmPingResponse")), Vec::<String>::new());
    serde_json::from_value::<Ping>(ping).unwrap();

    assert_eq!(required("VmInfo"), json!(["config", "state"]));
    assert_eq!(
        contract.resolve(&contract.schema("VmInfo")["properties"]["config"]),
        contract.schema("VmConfig")
    );
    for state in contract.schema("VmState")["enum"].as_array().unwrap() {
        let info: Info = serde_json::from_value(json!({"config": {}, "state": state})).unwrap();
        assert_ne!(info.state, State::Unknown, "{state}");
    }
}
