//! The template environment that chat templates expect: Jinja as the checkpoints' tools set it up.

use std::io;

use minijinja::value::Value;
use minijinja::{Environment, Error, ErrorKind};
use serde::Serialize;
use serde_json::ser::Formatter;

/// Instructions one rendering may take. A conversation of a thousand turns takes about 10^5; an
/// endless loop in a template must end as an error.
const FUEL_MAX: u64 = 50_000_000;

/// An environment with the template `chat`: trimmed blocks, Python's string methods,
/// `raise_exception` and Python's JSON.
pub(super) fn environment(source: String) -> Result<Environment<'static>, Error> {
    let mut environment = Environment::new();
    environment.set_trim_blocks(true);
    environment.set_lstrip_blocks(true);
    environment.set_fuel(Some(FUEL_MAX));
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_function(
        "raise_exception",
        |message: String| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        },
    );
    environment.add_filter("tojson", python_json);
    environment.add_template_owned(super::chat::TEMPLATE_NAME, source)?;
    Ok(environment)
}

/// JSON as Python's `json.dumps(…, ensure_ascii=False)` writes it: a space after `:` and `,`.
fn python_json(value: &Value) -> Result<Value, Error> {
    let mut out = Vec::new();
    let mut serializer = serde_json::Serializer::with_formatter(&mut out, PythonStyle);
    let written = value.serialize(&mut serializer);
    written.map_err(|error| Error::new(ErrorKind::BadSerialization, error.to_string()))?;
    let text = String::from_utf8(out)
        .map_err(|error| Error::new(ErrorKind::BadSerialization, error.to_string()))?;
    Ok(Value::from_safe_string(text))
}

struct PythonStyle;

impl Formatter for PythonStyle {
    fn begin_array_value<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        if first {
            Ok(())
        } else {
            writer.write_all(b", ")
        }
    }

    fn begin_object_key<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        if first {
            Ok(())
        } else {
            writer.write_all(b", ")
        }
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }
}

#[cfg(test)]
mod tests {
    use minijinja::context;

    use super::*;

    fn render(source: &str) -> Result<String, Error> {
        let environment = environment(source.to_owned())?;
        let template = environment.get_template(super::super::chat::TEMPLATE_NAME)?;
        template.render(context! { x => serde_json::json!({"a": [1, "<é>"]}) })
    }

    #[test]
    fn python_methods_and_json_work() {
        let text = render("{{ 'a</think> b '.split('</think>')[-1].strip() }} {{ x | tojson }}");
        assert_eq!(text.expect("it renders"), r#"b {"a": [1, "<é>"]}"#);
    }

    #[test]
    fn blocks_are_trimmed() {
        let text = render("  {% if true %}\na\n  {% endif %}\nb");
        assert_eq!(text.expect("it renders"), "a\nb");
    }

    #[test]
    fn templates_can_refuse_and_cannot_run_for_ever() {
        let refused = render("{{ raise_exception('roles must alternate') }}");
        let text = refused.expect_err("it refuses").to_string();
        assert!(text.contains("roles must alternate"), "{text}");
        let endless =
            "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}";
        assert_eq!(
            render(endless).expect_err("it runs out").kind(),
            ErrorKind::OutOfFuel
        );
    }
}
