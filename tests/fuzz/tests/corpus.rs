//! Replays the corpora, without libFuzzer: what was ever found stays found.

use std::fs;
use std::path::{Path, PathBuf};

fn entries(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).expect("a directory");
    let mut paths: Vec<_> = entries.map(|entry| entry.expect("an entry").path()).collect();
    paths.sort();
    paths
}

/// One test, since `message` counts the descriptors of the process. The output of a failed one names
/// the input.
#[test]
fn every_input_of_the_corpora() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let mut expected = fuzz::TARGETS.map(|(name, _)| corpus.join(name));
    expected.sort();
    assert_eq!(entries(&corpus), expected, "each target has a corpus, and nothing else is there");
    for (name, target) in fuzz::TARGETS {
        let inputs = entries(&corpus.join(name));
        assert!(inputs.len() > 50, "{name} has only {} inputs", inputs.len());
        for input in inputs {
            println!("{}", input.display());
            target(&fs::read(&input).expect("an input"));
        }
    }
}
