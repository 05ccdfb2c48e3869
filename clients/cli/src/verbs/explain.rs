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
    match error_pages::find(&wanted) {
        Some(page) => output.text(page),
        None => Err(unknown(name, &wanted).into()),
    }
}

fn list(output: &Output) -> Result<(), Stop> {
    for code in ErrorCode::ALL {
        let (name, exit) = (code.name(), code.exit_status());
        let summary = summary(error_pages::page(*code));
        output.data(format_args!("{name:<26} {exit:>3}  {summary}"))?;
    }
    for (name, page) in error_pages::LINK {
        let summary = summary(page);
        output.data(format_args!("{name:<26}   -  {summary}"))?;
    }
    Ok(())
}

/// The first sentence of a page.
fn summary(page: &str) -> &str {
    let mut lines = page.lines().skip(1);
    lines.find(|line| !line.is_empty()).unwrap_or_default()
}

fn unknown(name: &str, wanted: &str) -> Fault {
    let message = format!("there is no error code `{name}`");
    let fault = Fault::new(ErrorCode::InvalidRequest, message);
    let of_link = error_pages::LINK.iter().map(|(name, _)| *name);
    let names = ErrorCode::ALL.iter().map(|code| code.name()).chain(of_link);
    match text::nearest(wanted, names) {
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
