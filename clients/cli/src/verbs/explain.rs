//! `volley explain`: what an error code means and what to do.

use clap::Args;
use volley_protocol::{ErrorCode, Fault};

use crate::error_pages;
use crate::errors::Stop;
use crate::output::Output;
use crate::text;

/// Tell what an error code means and what to do.
#[derive(Debug, Args)]
pub(crate) struct ExplainArgs {
    /// For example QUEUE_FULL; without a code all of them are listed.
    code: Option<String>,
}

pub(crate) fn run(args: &ExplainArgs, output: &Output) -> Result<(), Stop> {
    let Some(name) = &args.code else {
        return list(output);
    };
    let wanted = name.trim().to_ascii_uppercase().replace('-', "_");
    match ErrorCode::from_name(&wanted) {
        Some(code) => output.text(error_pages::page(code)),
        None => Err(unknown(name, &wanted).into()),
    }
}

fn list(output: &Output) -> Result<(), Stop> {
    for code in ErrorCode::ALL {
        let page = error_pages::page(*code);
        let summary = page
            .lines()
            .skip(1)
            .find(|line| !line.is_empty())
            .unwrap_or_default();
        output.data(format_args!(
            "{:<26} {:>3}  {summary}",
            code.name(),
            code.exit_status()
        ))?;
    }
    Ok(())
}

fn unknown(name: &str, wanted: &str) -> Fault {
    let message = format!("there is no error code `{name}`");
    let fault = Fault::new(ErrorCode::InvalidRequest, message);
    match text::nearest(wanted, ErrorCode::ALL.iter().map(|code| code.name())) {
        Some(near) => fault.with_hint(format!("did you mean {near}?")),
        None => fault.with_hint("`volley explain` lists them"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_of_the_finger_is_forgiven() {
        let fault = unknown("queue_ful", "QUEUE_FUL");
        assert_eq!(fault.hint, "did you mean QUEUE_FULL?");
        assert_eq!(fault.code.exit_status(), 2);
        assert!(unknown("x", "X").hint.contains("lists"));
    }
}
