//! Does the oracle say what the text says? Every case, and each rule by itself.

use npolicy_tests::cases;
use npolicy_tests::oracle::{Answer, World};

#[test]
fn answers_every_case_as_expected() {
    let (mut asked, mut differences) = (0, Vec::new());
    for case in cases::all().unwrap() {
        let world = World::from_objects(&case.objects().unwrap());
        for row in &case.rows {
            let (answer, detail) = match world.ask(&row.probe()) {
                Answer::Accept => ("Accept", String::new()),
                Answer::Deny => ("Deny", String::new()),
                Answer::Error(reason) => ("error", reason),
            };
            asked += 1;
            if answer != row.expect {
                let line = row.line();
                let why = &row.why;
                differences.push(format!("{}: {line}: {answer} {detail}, not {}: {why}", case.name, row.expect));
            }
        }
    }
    assert!(differences.is_empty(), "{} of {asked} answers differ:\n{}", differences.len(), differences.join("\n"));
    assert_eq!(asked, 786, "cases were added or lost: count them here");
}
