//! A table of a table in TOML, set without touching anything else of the text.

use super::ConfigurationError;
use serde_json::Value;
use toml::Table;

/// `text` with the members of `value` as the table `[section.name]`.
pub(super) fn set(
    text: &str,
    section: &'static str,
    name: &str,
    value: &Value,
) -> Result<String, ConfigurationError> {
    let mut wanted: Table = text.parse().map_err(ConfigurationError::Toml)?;
    let table = lines(section, name, value);
    let alone: Table = table.parse().map_err(ConfigurationError::Toml)?;
    let servers = wanted.entry(section).or_insert_with(|| Table::new().into());
    let servers = servers.as_table_mut().ok_or(ConfigurationError::Shape(section))?;
    servers.insert(name.to_owned(), alone[section][name].clone());
    let changed = replace(text, &format!("{section}.{name}"), &table);
    match changed.parse::<Table>() {
        Ok(now) if now == wanted => Ok(changed),
        // It is there in another way: inline, or with quotes.
        Ok(_) | Err(_) => Err(ConfigurationError::Changed),
    }
}

/// The table as people write it.
fn lines(section: &str, name: &str, value: &Value) -> String {
    let mut text = format!("[{section}.{name}]\n");
    for (key, value) in value.as_object().into_iter().flatten() {
        // Texts, numbers and lists of texts are written in TOML as in JSON.
        text.push_str(&format!("{key} = {value}\n"));
    }
    text
}

/// Puts `table` where the table `header` and those below it are, or at the end.
fn replace(text: &str, header: &str, table: &str) -> String {
    let is_header = |line: &str| line.trim_start().starts_with('[');
    let is_ours = |line: &str| {
        let name = line.trim_start().strip_prefix('[').and_then(|rest| rest.split(']').next());
        name.is_some_and(|name| {
            name.trim() == header
                || name.trim().strip_prefix(header).is_some_and(|rest| rest.starts_with('.'))
        })
    };
    let (mut changed, mut ours, mut done) = (String::new(), false, false);
    for line in text.split_inclusive('\n') {
        if is_header(line) {
            ours = is_ours(line);
        }
        // What stands between it and the next table belongs to that.
        let kept = !ours || (done && (line.trim().is_empty() || line.trim_start().starts_with('#')));
        if ours && !done {
            changed.push_str(table);
            done = true;
        } else if kept {
            changed.push_str(line);
        }
    }
    if !done {
        if !changed.is_empty() {
            changed.push_str(if changed.ends_with('\n') { "\n" } else { "\n\n" });
        }
        changed.push_str(table);
    }
    changed
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn set_in(text: &str) -> Result<String, ConfigurationError> {
        set(
            text,
            "mcp_servers",
            "firn",
            &json!({ "args": ["mcp", "a\"\\\u{e4}\n"], "command": "firn", "n": 1 }),
        )
    }

    const OURS: &str = "[mcp_servers.firn]\nargs = [\"mcp\",\"a\\\"\\\\ä\\n\"]\ncommand = \"firn\"\nn = 1\n";

    #[test]
    fn nothing_else_changes() {
        assert_eq!(set_in("").unwrap(), OURS);
        let others = "# mine\nmodel = 'x' # yes\n\n[mcp_servers.other]\ncommand = \"y\"";
        let changed = set_in(others).unwrap();
        assert_eq!(changed, format!("{others}\n\n{OURS}"));
        assert_eq!(set_in(&changed).unwrap(), changed);
        let old = "[mcp_servers.firn]\ncommand = \"old\"\n[mcp_servers.firn.env]\nA = \"1\"\n\n# of b\n[b]\nx = 1\n";
        assert_eq!(set_in(old).unwrap(), format!("{OURS}\n# of b\n[b]\nx = 1\n"));
    }

    #[test]
    fn what_cannot_be_kept_is_left_alone() {
        assert!(matches!(set_in("model = "), Err(ConfigurationError::Toml(_))));
        assert!(matches!(set_in("mcp_servers = 1"), Err(ConfigurationError::Shape(_))));
        for otherwise in [
            "mcp_servers = { firn = { command = 'x' } }",
            "[mcp_servers]\nfirn = { command = 'x' }",
            "[mcp_servers.\"firn\"]\ncommand = 'x'",
        ] {
            assert!(matches!(set_in(otherwise), Err(ConfigurationError::Changed)), "{otherwise}");
        }
    }
}
