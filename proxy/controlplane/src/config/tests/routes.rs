//! From a file to the routes of a snapshot.

use super::*;

#[test]
fn three_lines_are_enough() {
    let house = House::new(&["sendgrid.com"]);
    house.key("key", b"SG.abcdefghijklmnopqrstuv.0123456789\n");
    let resolved = house
        .resolve("[[route]]\npreset = \"sendgrid\"\ncredential = \"file://DIR/key\"\ncallers = \"open\"\n")
        .unwrap_or_else(|report| panic!("{report}"));
    println!("{:#?}", resolved);
    println!("{}", resolved.warnings);
}
