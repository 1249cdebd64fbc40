//! Fuzz without libFuzzer, on any stable toolchain.
//!
//!     cargo run --release -- SECONDS [SEED]        every target for so many seconds
//!     cargo run --release -- replay TARGET FILE…   the inputs that broke one
//!     cargo run --release -- corpus FOLDER         write the seeds for libFuzzer, a folder per target
//!
//! An input that breaks a promise is kept in `artifacts/TARGET/`, and the exit status is 1.

use std::error::Error;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime};
use std::{env, fs, iter};

use fuzz::mutate::{Random, mutated};
use fuzz::seeds::seeds;
use fuzz::targets::{TARGETS, Target};

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["replay", name, files @ ..] => replay(name, files)?,
        ["corpus", folder] => write_corpus(Path::new(folder))?,
        [seconds] => return fuzz(seconds.parse()?, fresh_seed()?),
        [seconds, seed] => return fuzz(seconds.parse()?, seed.parse()?),
        _ => return Err(
            "Write how many SECONDS each target is to run; src/main.rs says what else there is."
                .into(),
        ),
    }
    Ok(ExitCode::SUCCESS)
}

fn fresh_seed() -> Result<u64, Box<dyn Error>> {
    Ok(SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)?
        .as_secs())
}

fn fuzz(seconds: u64, seed: u64) -> Result<ExitCode, Box<dyn Error>> {
    println!("Fuzzing each target for {seconds} s with seed {seed}.");
    let mut broken = false;
    for (name, target) in TARGETS {
        match run(
            name,
            target,
            Duration::from_secs(seconds),
            &mut Random(seed),
        ) {
            Ok(inputs) => println!("{name}: {inputs} inputs, no promise broken"),
            Err(input) => {
                let file = keep(name, &input)?;
                println!(
                    "{name}: broken; see it again with: cargo run --release -- replay {name} {}",
                    file.display()
                );
                broken = true;
            }
        }
    }
    Ok(if broken {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

/// Runs a target on its seeds, and on damaged ones until the time is over; the number of inputs, or the one that broke it.
fn run(name: &str, target: Target, time: Duration, random: &mut Random) -> Result<u64, Vec<u8>> {
    let seeds = seeds(name);
    let end = Instant::now() + time;
    let damaged = iter::from_fn(|| (Instant::now() < end).then(|| mutated(&seeds, random)));
    let mut inputs = 0;
    for input in seeds.iter().cloned().chain(damaged) {
        catch_unwind(AssertUnwindSafe(|| target(&input))).map_err(|_| input)?;
        inputs += 1;
    }
    Ok(inputs)
}

fn keep(name: &str, input: &[u8]) -> Result<PathBuf, Box<dyn Error>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("artifacts")
        .join(name);
    fs::create_dir_all(&folder)?;
    let file = folder.join(format!("broken-{}", fresh_seed()?));
    fs::write(&file, input)?;
    Ok(file)
}

fn replay(name: &str, files: &[&str]) -> Result<(), Box<dyn Error>> {
    let known = TARGETS.into_iter().find(|(known, _)| *known == name);
    let (_, target) =
        known.ok_or_else(|| format!("There is no target {name}; src/targets.rs lists them."))?;
    for file in files {
        target(&fs::read(file)?);
        println!("{file}: no promise broken");
    }
    Ok(())
}

fn write_corpus(folder: &Path) -> Result<(), Box<dyn Error>> {
    for (name, _) in TARGETS {
        let folder = folder.join(name);
        fs::create_dir_all(&folder)?;
        for (i, seed) in seeds(name).into_iter().enumerate() {
            fs::write(folder.join(format!("seed-{i}")), seed)?;
        }
    }
    Ok(())
}
