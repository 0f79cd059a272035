//! The `karapace` program.

fn main() {
    karapace::process::begin();
    karapace::cli::answer_shell();
    std::process::exit(karapace::cli::run(std::env::args_os()));
}
