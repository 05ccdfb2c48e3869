//! Sample episodes: the learner's Markdown pages, read back for the report.
//!
//! The pages have one shape (`# Step`, `## Best: reward 1.000`, `**role**`, `> text`); whatever
//! else stands in them is shown as text.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use super::words::escape;

/// A longer page is no page of ours.
const PAGE_BYTES_MAX: u64 = 4 << 20;

/// Characters of one message in the report; the page on disk has more.
const MESSAGE_CHARS_MAX: usize = 2_400;

/// Samples of one step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Page {
    pub(super) title: String,
    pub(super) samples: Vec<Sample>,
}

/// One episode.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Sample {
    /// `Best`, `Median`, `Worst`.
    rank: String,
    /// `reward 1.000`.
    reward: String,
    /// Instance, turns, metrics.
    about: Vec<String>,
    /// Role and text.
    messages: Vec<(String, String)>,
}

/// The pages of the first and of the last step: what changed is seen between them.
pub(super) fn first_and_last(directory: &Path) -> Vec<Page> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut files: Vec<_> = entries
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "md"))
        .collect();
    files.sort();
    let chosen = match files.as_slice() {
        [] => vec![],
        [only] => vec![only],
        [first, .., last] => vec![last, first],
    };
    let read = |path: &Path| {
        let small = fs::metadata(path).is_ok_and(|file| file.len() <= PAGE_BYTES_MAX);
        small.then(|| fs::read_to_string(path).ok()).flatten()
    };
    chosen
        .into_iter()
        .filter_map(|path| read(path))
        .map(|text| parse(&text))
        .collect()
}

fn parse(text: &str) -> Page {
    let mut page = Page::default();
    for line in text.lines() {
        if let Some(title) = line.strip_prefix("# ") {
            page.title = title.to_owned();
        } else if let Some(heading) = line.strip_prefix("## ") {
            let (rank, reward) = heading.split_once(": ").unwrap_or((heading, ""));
            let (rank, reward) = (rank.to_owned(), reward.to_owned());
            page.samples.push(Sample {
                rank,
                reward,
                ..Sample::default()
            });
        } else if let Some(sample) = page.samples.last_mut() {
            sample.take(line);
        }
    }
    page
}

impl Sample {
    fn take(&mut self, line: &str) {
        let role = line
            .strip_prefix("**")
            .and_then(|rest| rest.strip_suffix("**"));
        match (role, line.strip_prefix('>'), self.messages.last_mut()) {
            (Some(role), ..) => self.messages.push((role.to_owned(), String::new())),
            (None, Some(quoted), Some((_, text))) => {
                if !text.is_empty() {
                    text.push('\n');
                }
                text.push_str(quoted.strip_prefix(' ').unwrap_or(quoted));
            }
            _ if line.trim().is_empty() => {}
            (None, _, None) => self.about.push(line.to_owned()),
            (None, None, Some((_, text))) => {
                text.push('\n');
                text.push_str(line);
            }
        }
    }

    fn html(&self) -> String {
        let mut html = format!(
            "<div class=\"card sample\"><div class=\"rank\"><span>{}</span><b>{}</b></div>\n",
            escape(&self.rank),
            escape(&self.reward)
        );
        for line in &self.about {
            let _ = writeln!(html, "<p class=\"about\">{}</p>", escape(line));
        }
        for (role, text) in &self.messages {
            let class = if role == "assistant" {
                " class=\"assistant\""
            } else {
                ""
            };
            let mut shown: String = text.chars().take(MESSAGE_CHARS_MAX).collect();
            if shown.len() < text.len() {
                shown.push_str(" …");
            }
            let shown = if shown.is_empty() {
                "(nothing)".to_owned()
            } else {
                escape(&shown)
            };
            let _ = writeln!(
                html,
                "<p class=\"role\">{}</p><pre{class}>{shown}</pre>",
                escape(role)
            );
        }
        html.push_str("</div>\n");
        html
    }
}

impl Page {
    pub(super) fn html(&self) -> String {
        let samples: String = self.samples.iter().map(Sample::html).collect();
        format!(
            "<div class=\"samples\"><h3>{}</h3>\n{samples}</div>\n",
            escape(&self.title)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "# Step 3\n\n## Best: reward 1.000\n\nrollout 4 · instance 7\n\n\
        exact 1.000\n\n**user**\n\n> <b>hi</b>\n> \n> there\n\n**assistant**\n\n\n\
        ## Worst: reward 0.000\n\nrollout 5\n";

    #[test]
    fn pages_are_read_back() {
        let page = parse(PAGE);
        assert_eq!((page.title.as_str(), page.samples.len()), ("Step 3", 2));
        let best = &page.samples[0];
        assert_eq!(
            (best.rank.as_str(), best.reward.as_str()),
            ("Best", "reward 1.000")
        );
        assert_eq!(best.about, ["rollout 4 · instance 7", "exact 1.000"]);
        let expected = [("user", "<b>hi</b>\n\nthere"), ("assistant", "")];
        let expected = expected.map(|(role, text)| (role.to_owned(), text.to_owned()));
        assert_eq!(best.messages, expected);
    }

    #[test]
    fn nothing_in_a_transcript_is_obeyed() {
        let html = parse(PAGE).html();
        assert!(
            html.contains("&lt;b&gt;hi&lt;/b&gt;") && !html.contains("<b>hi"),
            "{html}"
        );
        assert!(html.contains("(nothing)"));
        let evil = "# <script>x</script>\n## a: <img>\n<i>\n**\"><svg>**\n> </pre><script>\n";
        let html = parse(evil).html();
        assert!(!html.contains("<script>") && !html.contains("<i>") && !html.contains("<svg>"));
    }

    #[test]
    fn the_last_and_the_first_step_are_shown() {
        let dir = tempfile::tempdir().expect("temporary directory");
        assert!(first_and_last(dir.path()).is_empty());
        for step in [1, 2, 30] {
            let path = dir.path().join(format!("step-{step:06}.md"));
            fs::write(path, format!("# Step {step}\n")).expect("write");
        }
        let titles: Vec<_> = first_and_last(dir.path())
            .into_iter()
            .map(|p| p.title)
            .collect();
        assert_eq!(titles, ["Step 30", "Step 1"]);
    }
}
