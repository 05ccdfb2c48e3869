//! Packed weights in files: the same model to the bit, shared by all who load it, and never a
//! wrong one, whatever stands under the file's name.

mod fixture;
mod random_model;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant, SystemTime};

use random_model::{Noise, ODD_SHAPES, Shape};
use sha2::{Digest as _, Sha256};
use volley_engine::EngineError;
use volley_engine::adapter::{Adapter, LoraConfig};
use volley_engine::config::Compute;
use volley_engine::cpu::threads::Threads;
use volley_engine::kv::KvCache;
use volley_engine::model::{LoadOptions, LogitsWanted, Model, Scratch, SequenceStep};
use volley_engine::packed::{PackedCache, Packing};
use volley_engine::train::{Loss, Trainer};

const FORMATS: [Compute; 2] = [Compute::F32, Compute::Bf16];

/// Loading of a model through a cache that takes even the smallest one.
fn options(cache: &Path, compute: Compute, training: bool) -> LoadOptions {
    LoadOptions {
        compute,
        cache: Some(PackedCache::new(cache).for_models_from(0)),
        training,
    }
}

fn load(model: &Path, cache: &Path, compute: Compute) -> Result<Model, EngineError> {
    Model::load_with(model, &options(cache, compute, false))
}

/// Bits of the logits of a few tokens.
fn logits(model: &Model, tokens: &[u32]) -> Vec<u32> {
    let mut cache = KvCache::new(model.config());
    let step = SequenceStep {
        tokens,
        cache: &mut cache,
        adapter: None,
        logits: LogitsWanted::All,
    };
    let logits = model.forward(&mut [step], &Threads::new(1), &mut Scratch::new());
    let logits = logits.expect("the tokens are valid");
    logits[0].data().iter().map(|x| x.to_bits()).collect()
}

fn tokens(model: &Model) -> Vec<u32> {
    Noise::new(3).tokens(17, model.config().vocab_size)
}

/// The packed files of a cache, sorted.
fn files(cache: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(cache).expect("the cache is there");
    let paths = entries.map(|entry| entry.expect("readable").path());
    let mut files: Vec<_> = paths.filter(|path| !path.ends_with("lock")).collect();
    files.sort();
    files
}

/// Puts other bytes under a file's name, as a careless program would.
fn replace(file: &Path, bytes: &[u8]) {
    fs::remove_file(file).expect("it is there");
    fs::write(file, bytes).expect("writable");
}

/// The only packing of a model.
fn packing(model: &Model) -> &Packing {
    let [packing] = model.packings() else {
        panic!("one packing: {:?}", model.packings());
    };
    packing
}

/// Compares a private load with one that writes and one that maps.
fn assert_same(name: &str, folder: &Path, compute: Compute) {
    let cache = tempfile::tempdir().expect("a folder");
    let cache = cache.path().join("packed");
    let private = Model::load_as(folder, compute).expect("it loads");
    assert_eq!(packing(&private), &Packing::Private);
    let written = load(folder, &cache, compute).expect("it loads");
    let mapped = load(folder, &cache, compute).expect("it loads");
    let [file] = files(&cache).try_into().expect("one file");
    let damage = None;
    assert_eq!(packing(&mapped), &Packing::Mapped { file: file.clone() });
    assert_eq!(packing(&written), &Packing::Written { file, damage });
    let tokens = tokens(&private);
    let truth = logits(&private, &tokens);
    for model in [written, mapped] {
        assert_eq!(model.digest(), private.digest(), "{name}");
        assert_eq!(model.compute(), compute);
        assert!(logits(&model, &tokens) == truth, "{name} {compute:?}");
    }
}

#[test]
fn mapped_weights_are_the_packed_ones_to_the_bit() {
    for fixture in fixture::ALL {
        for compute in FORMATS {
            assert_same(fixture.0, &fixture.dir(), compute);
        }
    }
    // Remainders everywhere, tied and not, all stored formats.
    for (seed, shape) in ODD_SHAPES.into_iter().enumerate() {
        let folder = tempfile::tempdir().expect("a folder");
        shape.write(folder.path(), seed as u64);
        for compute in FORMATS {
            assert_same(&format!("{shape:?}"), folder.path(), compute);
        }
    }
}

#[test]
fn a_trainer_maps_its_transposes() {
    let cache = tempfile::tempdir().expect("a folder");
    for fixture in fixture::ALL {
        for compute in FORMATS {
            let options = options(cache.path(), compute, true);
            let load = || Model::load_with(&fixture.dir(), &options).expect("it loads");
            let private = Model::load_as(&fixture.dir(), compute).expect("it loads");
            let [written, mapped] = [load(), load()];
            assert!(matches!(
                mapped.packings(),
                [Packing::Mapped { .. }, Packing::Mapped { .. }]
            ));
            let [private, written, mapped] = [private, written, mapped].map(gradient);
            assert!(written == private, "{fixture:?} {compute:?}");
            assert!(mapped == private, "{fixture:?} {compute:?}");
        }
    }
}

/// Bits of a gradient.
fn gradient(model: Model) -> Vec<u32> {
    let lora = LoraConfig::all_linear(4, 8.0);
    let adapter = Adapter::init(model.config(), &lora, 5).expect("valid");
    let data = fixture::data(&Loss::CrossEntropy);
    let vocab = model.config().vocab_size as u32;
    let data: Vec<_> = (data.into_iter().take(2))
        .map(|mut datum| {
            datum.tokens.iter_mut().for_each(|token| *token %= vocab);
            datum
        })
        .collect();
    let trainer = Trainer::new(Arc::new(model), adapter, Threads::new(1));
    let mut trainer = trainer.expect("they fit");
    let step = trainer.forward_backward(&data, &Loss::CrossEntropy);
    step.expect("finite");
    let grads = trainer.grads().flat_map(|grad| grad.values.to_vec());
    let grads: Vec<u32> = grads.map(f32::to_bits).collect();
    assert!(grads.iter().any(|bits| *bits << 1 != 0));
    grads
}

#[test]
fn formats_that_pack_alike_share_a_file() {
    let (cache, folder) = (tempfile::tempdir(), tempfile::tempdir());
    let (cache, folder) = (cache.expect("a folder"), folder.expect("a folder"));
    // Stored in bfloat16, so packed in it either way.
    ODD_SHAPES[2].write(folder.path(), 1);
    let [first, second] =
        FORMATS.map(|compute| load(folder.path(), cache.path(), compute).expect("it loads"));
    assert!(matches!(packing(&first), Packing::Written { .. }));
    assert!(matches!(packing(&second), Packing::Mapped { .. }));
    // Rounded for one of them only.
    let folder = tempfile::tempdir().expect("a folder");
    ODD_SHAPES[0].write(folder.path(), 1);
    for compute in FORMATS {
        let model = load(folder.path(), cache.path(), compute).expect("it loads");
        assert!(matches!(packing(&model), Packing::Written { .. }));
    }
    assert_eq!(files(cache.path()).len(), 3);
    let usage = PackedCache::new(cache.path()).usage().expect("readable");
    let bytes = files(cache.path()).into_iter();
    let bytes = bytes.map(|file| fs::metadata(file).expect("it is there").len());
    assert_eq!(usage, (3, bytes.sum()));
}

#[test]
fn a_changed_model_never_meets_an_old_file() {
    let cache = tempfile::tempdir().expect("a folder");
    let folder = tempfile::tempdir().expect("a folder");
    ODD_SHAPES[0].write(folder.path(), 1);
    let first = load(folder.path(), cache.path(), Compute::F32).expect("it loads");
    let before = logits(&first, &tokens(&first));
    // One bit of one weight, in a file of the same length.
    let weights = folder.path().join("model.safetensors");
    let mut bytes = fs::read(&weights).expect("it is there");
    let last = bytes.len() - 2;
    bytes[last] ^= 0x40;
    replace(&weights, &bytes);
    let second = load(folder.path(), cache.path(), Compute::F32).expect("it loads");
    assert!(matches!(
        packing(&second),
        Packing::Written { damage: None, .. }
    ));
    // A setting that changes no matrix.
    let config = folder.path().join("config.json");
    let text = fs::read_to_string(&config).expect("it is there");
    fs::write(&config, text.replace("1e-6", "1e-5")).expect("writable");
    let third = load(folder.path(), cache.path(), Compute::F32).expect("it loads");
    assert!(matches!(
        packing(&third),
        Packing::Written { damage: None, .. }
    ));
    assert_eq!(files(cache.path()).len(), 3);
    // The first still computes what it did.
    assert!(logits(&first, &tokens(&first)) == before);
}

/// The smallest model: few bytes, all of which matter.
const SMALL: Shape = ODD_SHAPES[1];

#[test]
fn a_damaged_file_is_made_again() {
    let seed = 0x5eed ^ u64::from(std::process::id());
    println!("seed {seed}");
    let mut noise = Noise::new(seed);
    let (cache, folder) = (tempfile::tempdir(), tempfile::tempdir());
    let (cache, folder) = (cache.expect("a folder"), folder.expect("a folder"));
    SMALL.write(folder.path(), 1);
    let first = load(folder.path(), cache.path(), Compute::F32).expect("it loads");
    let tokens = tokens(&first);
    let truth = logits(&first, &tokens);
    let [file] = files(cache.path()).try_into().expect("one file");
    let whole = fs::read(&file).expect("it is there");
    let check = |bytes: &[u8], what: &str| {
        replace(&file, bytes);
        let begun = Instant::now();
        let model = load(folder.path(), cache.path(), Compute::F32).expect("it loads");
        assert!(begun.elapsed() < Duration::from_secs(5), "{what}");
        let Packing::Written { damage, .. } = packing(&model) else {
            panic!("{what}: {}", packing(&model));
        };
        assert!(damage.is_some(), "{what}");
        assert!(logits(&model, &tokens) == truth, "{what}");
        assert_eq!(fs::read(&file).expect("it is there"), whole, "{what}");
    };
    for _ in 0..200 {
        let mut bytes = whole.clone();
        let at = noise.below(bytes.len());
        bytes[at] ^= 1 << noise.below(8);
        check(&bytes, &format!("a bit of byte {at}"));
    }
    // Every byte of what is not zeros between the matrices: the header's words, the checksums.
    let sums = whole.len() - 4 * 24..whole.len();
    for at in (0..110).chain(sums) {
        let mut bytes = whole.clone();
        bytes[at] = !bytes[at];
        check(&bytes, &format!("byte {at}"));
    }
    for _ in 0..50 {
        let at = noise.below(whole.len());
        check(&whole[..at], &format!("cut at {at}"));
        let mut zeros = whole.clone();
        zeros[at..].fill(0);
        if zeros != whole {
            check(&zeros, &format!("zeros from {at}"));
        }
    }
    check(&[], "empty");
    check(&[whole.as_slice(), &[0]].concat(), "longer");
}

#[test]
fn lengths_that_lie_cost_nothing() {
    let (cache, folder) = (tempfile::tempdir(), tempfile::tempdir());
    let (cache, folder) = (cache.expect("a folder"), folder.expect("a folder"));
    SMALL.write(folder.path(), 1);
    let first = load(folder.path(), cache.path(), Compute::F32).expect("it loads");
    let truth = logits(&first, &tokens(&first));
    let [file] = files(cache.path()).try_into().expect("one file");
    let whole = fs::read(&file).expect("it is there");
    // Counts, sizes, offsets and lengths of the first matrices, as bombs and as overlaps.
    let mut headers = Vec::new();
    for at in (16..32).step_by(4) {
        headers.extend([0, 1, u32::MAX].map(|word| (at, word.to_ne_bytes().to_vec())));
    }
    let name = 2 + "model.layers.0.self_attn.q_proj.weight".len();
    for word in 0..4 {
        let at = 64 + name + 8 * word;
        let lies = [0, 1, 1 << 40, u64::MAX - 63, u64::MAX];
        headers.extend(lies.map(|lie| (at, lie.to_ne_bytes().to_vec())));
    }
    for (at, lie) in headers {
        let mut bytes = whole.clone();
        bytes[at..][..lie.len()].copy_from_slice(&lie);
        if bytes == whole {
            continue;
        }
        replace(&file, &bytes);
        let begun = Instant::now();
        let model = load(folder.path(), cache.path(), Compute::F32).expect("it loads");
        assert!(begun.elapsed() < Duration::from_secs(2), "{lie:?} at {at}");
        let damaged = matches!(
            packing(&model),
            Packing::Written {
                damage: Some(_),
                ..
            }
        );
        assert!(damaged, "{lie:?} at {at}");
        assert!(logits(&model, &tokens(&model)) == truth);
    }
    // A terabyte of nothing: refused by its length, not read.
    replace(&file, &[]);
    let huge = fs::File::options().write(true).open(&file).expect("there");
    if huge.set_len(1 << 40).is_ok() {
        let begun = Instant::now();
        let model = load(folder.path(), cache.path(), Compute::F32).expect("it loads");
        assert!(begun.elapsed() < Duration::from_secs(2));
        assert!(packing(&model).is_trouble() && packing(&model).is_shared());
    }
}

#[test]
fn other_things_under_the_name_are_replaced_or_left() {
    let (cache, folder) = (tempfile::tempdir(), tempfile::tempdir());
    let (cache, folder) = (cache.expect("a folder"), folder.expect("a folder"));
    SMALL.write(folder.path(), 1);
    let again = || load(folder.path(), cache.path(), Compute::F32).expect("it loads");
    let truth = logits(&again(), &tokens(&again()));
    let [file] = files(cache.path()).try_into().expect("one file");
    let whole = fs::read(&file).expect("it is there");
    let check = |what: &str, replaced: bool| {
        let model = again();
        assert_eq!(packing(&model).is_shared(), replaced, "{what}");
        assert!(packing(&model).is_trouble(), "{what}");
        assert!(logits(&model, &tokens(&model)) == truth, "{what}");
    };

    let elsewhere = folder.path().join("elsewhere");
    fs::rename(&file, &elsewhere).expect("writable");
    std::os::unix::fs::symlink(&elsewhere, &file).expect("a link");
    check("a link", true);
    assert_eq!(fs::read(&elsewhere).expect("it is there"), whole);

    fs::set_permissions(&file, fs::Permissions::from_mode(0o666)).expect("ours");
    check("a file that all may change", true);
    let mode = fs::metadata(&file).expect("it is there").permissions();
    assert_eq!(mode.mode() & 0o777, 0o400);

    fs::remove_file(&file).expect("it is there");
    let pipe = std::process::Command::new("mkfifo").arg(&file).status();
    if pipe.is_ok_and(|status| status.success()) {
        check("a pipe", true);
        fs::remove_file(&file).expect("it is there");
    }

    fs::create_dir(&file).expect("writable");
    check("a directory", false);
    let left: Vec<_> = files(cache.path());
    assert_eq!(left, [file], "no temporary file stays");
}

#[test]
fn what_is_mapped_survives_the_removal_of_its_file() {
    let (cache, folder) = (tempfile::tempdir(), tempfile::tempdir());
    let (cache, folder) = (cache.expect("a folder"), folder.expect("a folder"));
    SMALL.write(folder.path(), 1);
    let model = load(folder.path(), cache.path(), Compute::F32).expect("it loads");
    let truth = logits(&model, &tokens(&model));
    drop(cache);
    assert!(logits(&model, &tokens(&model)) == truth);
}

/// What is removed first is what was not used for longest, not what is oldest.
#[test]
fn a_file_that_is_mapped_counts_as_used() {
    let (cache, folder) = (tempfile::tempdir(), tempfile::tempdir());
    let (cache, folder) = (cache.expect("a folder"), folder.expect("a folder"));
    SMALL.write(folder.path(), 1);
    load(folder.path(), cache.path(), Compute::F32).expect("it loads");
    let [file] = files(cache.path()).try_into().expect("one file");
    let used = || fs::metadata(&file).and_then(|file| file.modified());
    let day = Duration::from_hours(24);
    let yesterday = SystemTime::now() - day;
    let open = fs::File::open(&file).expect("it is there");
    open.set_modified(yesterday).expect("ours");
    load(folder.path(), cache.path(), Compute::F32).expect("it loads");
    let later = used().expect("it is there").duration_since(yesterday);
    assert!(later.expect("later") > day / 2);
}

#[test]
fn those_who_load_at_once_share_one_file() {
    const LOADERS: usize = 4;
    let folder = tempfile::tempdir().expect("a folder");
    ODD_SHAPES[2].write(folder.path(), 1);
    for _ in 0..10 {
        let cache = tempfile::tempdir().expect("a folder");
        let start = Barrier::new(LOADERS);
        let models: Vec<Model> = std::thread::scope(|scope| {
            let one = || {
                start.wait();
                load(folder.path(), cache.path(), Compute::F32).expect("it loads")
            };
            let loaders: Vec<_> = (0..LOADERS).map(|_| scope.spawn(one)).collect();
            let models = loaders.into_iter().map(|loader| loader.join());
            models.map(|model| model.expect("no panic")).collect()
        });
        let written = models
            .iter()
            .filter(|model| matches!(packing(model), Packing::Written { .. }));
        assert_eq!(written.count(), 1);
        assert!(models.iter().all(|model| packing(model).is_shared()));
        assert_eq!(files(cache.path()).len(), 1);
        let truth = logits(&models[0], &tokens(&models[0]));
        for model in &models {
            assert!(logits(model, &tokens(model)) == truth);
        }
    }
}

#[test]
fn no_cache_is_no_reason_to_fail() {
    let folder = tempfile::tempdir().expect("a folder");
    SMALL.write(folder.path(), 1);
    let file = folder.path().join("config.json");
    // A file where a directory should be; a directory that not even root can write in; one of
    // others.
    let open = tempfile::tempdir().expect("a folder");
    fs::set_permissions(open.path(), fs::Permissions::from_mode(0o777)).expect("ours");
    for place in [
        &file,
        &file.join("below"),
        Path::new("/proc/1/none"),
        open.path(),
    ] {
        let options = options(place, Compute::F32, true);
        let model = Model::load_with(folder.path(), &options).expect("it loads");
        for packing in model.packings() {
            assert!(packing.is_trouble() && !packing.is_shared());
            assert!(packing.to_string().contains("not shared"), "{packing}");
        }
        assert_eq!(model.packings().len(), 2);
        gradient_of_small(model);
    }
}

/// A trainer makes its own transposes.
fn gradient_of_small(model: Model) {
    let adapter = Adapter::init(model.config(), &LoraConfig::all_linear(2, 2.0), 1);
    Trainer::new(Arc::new(model), adapter.expect("valid"), Threads::new(1)).expect("they fit");
}

#[test]
fn small_models_leave_nothing_behind() {
    let root = tempfile::tempdir().expect("a folder");
    let cache = root.path().join("packed");
    let options = LoadOptions {
        cache: Some(PackedCache::new(&cache)),
        ..LoadOptions::default()
    };
    let model = Model::load_with(&fixture::dir(), &options).expect("it loads");
    assert_eq!(packing(&model), &Packing::Private);
    assert!(!cache.exists());
    let usage = PackedCache::new(&cache).usage().expect("nothing is fine");
    assert_eq!(usage, (0, 0));
}

/// Frozen: an old file must not be read as a new one. Whoever changes these bytes raises the
/// version of the layout, which changes the names.
#[test]
#[cfg(target_endian = "little")]
fn the_layout_is_the_one_of_its_version() {
    let cache = tempfile::tempdir().expect("a folder");
    let mut found = Vec::new();
    for compute in FORMATS {
        let folder = tempfile::tempdir().expect("a folder");
        ODD_SHAPES[0].write(folder.path(), 1);
        let options = options(cache.path(), compute, true);
        let model = Model::load_with(folder.path(), &options).expect("it loads");
        for packing in model.packings() {
            let Packing::Written { file, .. } = packing else {
                panic!("{packing}");
            };
            let name = file.file_stem().expect("a name").to_string_lossy();
            let digest = Sha256::digest(fs::read(file).expect("it is there"));
            let hex: String = digest.iter().take(8).map(|b| format!("{b:02x}")).collect();
            found.push((name[..16].to_owned(), hex));
        }
    }
    let found: Vec<_> = found
        .iter()
        .map(|(n, d)| (n.as_str(), d.as_str()))
        .collect();
    let frozen = [
        ("75b31af06d88a3f7", "e014bbd28bacec82"),
        ("b0dadcb747743735", "667668d9641f7f63"),
        ("277bee8be97a97a6", "e277dbdbfb113cfb"),
        ("40f54bdf28999812", "e3c90d94adbdc047"),
    ];
    assert_eq!(found, frozen);
}
