//! Writes what an image holds beside its program to a folder; the Dockerfile copies that into the image.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Parser;

#[derive(Debug, Parser)]
#[command(about = "Write what an image holds beside its program to a folder", version)]
struct Cli {
    /// The package whose program is in the image.
    #[arg(long)]
    package: String,
    /// The target it is built for, such as x86_64-unknown-linux-gnu.
    #[arg(long)]
    target: String,
    /// The folder that becomes the image's root.
    root: PathBuf,
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    let here = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let workspace = here.parent().unwrap_or(here);
    for (path, content) in idtoken_image::files(workspace, &cli.package, &cli.target)? {
        let path = cli.root.join(path.trim_start_matches('/'));
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
        }
        std::fs::write(&path, content).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}
