//! The program of the end-to-end tests' pods, see `npolicy_tests::e2e::peer`.

fn main() -> anyhow::Result<()> {
    npolicy_tests::e2e::peer::main()
}
