//! The `karapace` program.

fn main() {
    std::process::exit(karapace::cli::run(std::env::args_os()));
}
