//! The template environment that chat templates expect: Jinja as the checkpoints' tools set it up.
//!
//! A template is a program that came with the model. Its instructions and its output have bounds,
//! and a panic of the library is an error; what it makes in between, a string that is doubled forty
//! times for instance, is only bounded by the memory.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};

use minijinja::value::Value;
use minijinja::{Environment, Error, ErrorKind};
use serde::Serialize;
use serde_json::ser::Formatter;

/// Instructions one rendering may take, about a tenth of a second. A conversation of a thousand
/// turns takes about 10^5; an endless loop in a template must end as an error.
const FUEL_MAX: u64 = 5_000_000;

/// Bytes one rendering may write: several times the text of the longest context. A loop writes as
/// much as it likes with each instruction.
const RENDERED_BYTES_MAX: usize = 16 << 20;

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

/// The text of the environment's template.
pub(super) fn render(environment: &Environment<'_>, context: Value) -> Result<String, Error> {
    let template = environment.get_template(super::chat::TEMPLATE_NAME)?;
    let mut text = Bounded(Vec::new());
    let render = || template.render_captured_to(context, &mut text).map(|_| ());
    // Some of the library's operations panic on absurd lengths.
    let rendered = catch_unwind(AssertUnwindSafe(render));
    let failed = |reason: &str| Error::new(ErrorKind::InvalidOperation, reason.to_owned());
    rendered.unwrap_or_else(|_| Err(failed("the template library gave up on it")))?;
    String::from_utf8(text.0).map_err(|_| failed("it wrote no UTF-8"))
}

/// A text of at most [`RENDERED_BYTES_MAX`] bytes.
struct Bounded(Vec<u8>);

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > RENDERED_BYTES_MAX {
            let reason = format!("it writes more than {RENDERED_BYTES_MAX} bytes");
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, reason));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
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
        let context = context! { x => serde_json::json!({"a": [1, "<é>"]}) };
        super::render(&environment, context)
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

    #[test]
    fn what_a_template_writes_has_a_bound() {
        let most = RENDERED_BYTES_MAX >> 10;
        let write = |kib: usize| {
            render(&format!(
                "{{% set x = 'a' * 1024 %}}{{% for i in range({kib}) %}}{{{{ x }}}}{{% endfor %}}"
            ))
        };
        assert_eq!(write(most).expect("it fits").len(), RENDERED_BYTES_MAX);
        let error = write(most + 1).expect_err("it is too long");
        let cause = std::error::Error::source(&error).expect("the writer's words");
        assert!(cause.to_string().contains("more than"), "{error}: {cause}");
    }

    #[test]
    fn panics_of_the_library_are_errors() {
        for source in [
            "{{ ([1, 2] * 4611686018427387904) | list }}",
            "{{ '{:.1000000000f}'.format(1.0) }}",
        ] {
            let error = render(source).expect_err(source);
            assert!(error.to_string().contains("gave up"), "{error}");
        }
    }
}
