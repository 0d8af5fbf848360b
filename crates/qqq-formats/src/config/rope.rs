//! The rotary embedding in `config.json`: `rope_theta` and `rope_scaling` beside each other, or both in
//! `rope_parameters` (transformers 5). What counts where they disagree is as in transformers' `modeling_rope_utils`.

use super::{families::Family, fields::Fields, limit};
use crate::{
    FormatError, Result,
    keys::{KnownKeys, Neutral},
};

/// Rotary embedding frequencies' scaling.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// Frequencies as the base gives them.
    None,
    /// Positions divided by a factor.
    Linear {
        /// Divisor of all positions, above 0: `factor`.
        factor: f64,
    },
    /// Llama 3.1's piecewise scaling by wavelength.
    Llama3 {
        /// Divisor of the slow frequencies, above 0: `factor`.
        factor: f64,
        /// Turns within the original context up to which a frequency is divided: `low_freq_factor`.
        low_freq_factor: f64,
        /// Turns within the original context from which on a frequency stays: `high_freq_factor`.
        high_freq_factor: f64,
        /// Original context in tokens: `original_max_position_embeddings`.
        original_max_position_embeddings: f64,
    },
    /// YaRN (Peng et al., arXiv 2309.00071): high frequencies stay, low ones are divided, those in between are blended.
    Yarn {
        /// Divisor of the slow frequencies, above 0: `factor`.
        factor: f64,
        /// Turns within the original context from which on a frequency stays: `beta_fast`.
        beta_fast: f64,
        /// Turns within the original context up to which a frequency is divided: `beta_slow`.
        beta_slow: f64,
        /// Original context in tokens: `original_max_position_embeddings`.
        original_max_position_embeddings: f64,
        /// Whether the ends of the blend are rounded to whole frequencies.
        truncate: bool,
    },
    /// One divisor for each of the `rotary_dim / 2` inverse frequencies: `inv_freq[i] / factors[i]`
    /// (`rope_type: longrope` where one of its lists counts for all texts; llama.cpp's `rope_freqs.weight`,
    /// for a GGUF file whose factors are not those of a known Llama 3 setting).
    Factors(Vec<f32>),
    /// LongRoPE (Ding et al., arXiv 2402.13753): divisors as of [`Factors`](Self::Factors), of which longer texts have others,
    /// for all their positions.
    LongRope {
        /// `short_factor`, for texts within the original context.
        short: Vec<f32>,
        /// `long_factor`, for longer ones.
        long: Vec<f32>,
        /// `original_max_position_embeddings`, in tokens.
        original: usize,
    },
    /// Dynamic NTK: the base grows with the length of texts beyond the original context, for all their positions.
    Dynamic {
        /// `factor`, above 0: the base grows with `1 + factor (length / original - 1)`.
        factor: f64,
        /// `max_position_embeddings` of the configuration, in tokens.
        original: usize,
    },
}

impl RopeScaling {
    /// Tokens up to which a text has the rotary embedding of the original context, where longer texts have another one.
    pub fn original_context(&self) -> Option<usize> {
        match self {
            Self::LongRope { original, .. } | Self::Dynamic { original, .. } => Some(*original),
            Self::None | Self::Linear { .. } | Self::Llama3 { .. } | Self::Yarn { .. } | Self::Factors(_) => {
                None
            }
        }
    }
}

/// Base and scaling.
pub(super) struct Rope {
    pub theta: f64,
    pub scaling: RopeScaling,
    /// Factor of the cosines and sines.
    pub attention_factor: f64,
    /// Components of a head that are turned.
    pub width: usize,
    /// Base in layers with a window, if it is another one there.
    pub local_theta: Option<f64>,
    /// Longest context in tokens.
    pub positions: usize,
}

/// Keys that every type has.
const COMMON: &[&str] = &[
    "rope_type",
    "type",
    "rope_theta",
    "partial_rotary_factor",
    // Without a meaning in types that do not scale by it.
    "original_max_position_embeddings",
];
/// What some tools note of the training.
const NOTES: &[&str] = &["finetuned"];
/// YaRN's own.
const YARN: &[&str] =
    &["factor", "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"];
/// YaRN's early names of factors that transformers does not have.
const EARLY: &[(&str, Neutral)] = &[("attn_factor", Neutral::One), ("extrapolation_factor", Neutral::One)];

/// The types, with their own keys.
const TYPES: [(&str, KnownKeys); 7] = [
    (
        "default",
        KnownKeys {
            read: &[COMMON],
            // Of models that see: for text, its sections are one.
            harmless: &[NOTES, &["mrope_section"]],
            neutral: &[("factor", Neutral::One), EARLY[0], EARLY[1]],
        },
    ),
    ("linear", keys(&[COMMON, &["factor"]])),
    ("dynamic", keys(&[COMMON, &["factor"]])),
    ("proportional", keys(&[COMMON, &["factor"]])),
    ("llama3", keys(&[COMMON, &["factor", "low_freq_factor", "high_freq_factor"]])),
    ("longrope", keys(&[COMMON, &["factor", "attention_factor", "short_factor", "long_factor"]])),
    ("yarn", keys(&[COMMON, YARN])),
];

const fn keys(own: &'static [&'static [&'static str]]) -> KnownKeys {
    KnownKeys { read: own, harmless: &[NOTES], neutral: EARLY }
}

/// Reads the rotary embedding of heads of width `head_dim` in a model of so many positions.
pub(super) fn read(config: &Fields<'_>, family: &Family, head_dim: usize, positions: usize) -> Result<Rope> {
    // An object without entries counts as missing. `rope_scaling` replaces `rope_parameters` as a whole.
    let object = |key| config.object(key).map(|o| o.filter(|o| !o.is_empty()));
    let (scaling, parameters) = (object("rope_scaling")?, object("rope_parameters")?);
    let (parameters, local_theta) = match family.local_rope_theta {
        Some(default) => by_layer_type(config, parameters, default)?,
        None => (parameters, None),
    };
    let own = scaling.or(parameters);
    let theta = theta(config, own.as_ref(), family.defaults.rope_theta)?;
    let width = width(config, own.as_ref(), family, head_dim)?;
    let Some(f) = own else {
        return Ok(Rope {
            theta,
            scaling: RopeScaling::None,
            attention_factor: 1.0,
            width,
            local_theta,
            positions,
        });
    };
    let key = if f.has("rope_type") { "rope_type" } else { "type" };
    if f.is_null(key) {
        // transformers refuses it: a type of that name counts, whatever the other key says.
        return Err(f.malformed(&format!(
            "rope scaling: {key} is null, which names no type; write \"default\" for a rotary embedding that is not \
             scaled, or remove the key"
        )));
    }
    let kind = match f.string("rope_type")? {
        Some(kind) => kind,
        None => f.string("type")?.unwrap_or("default"),
    };
    let Some((kind, known)) = TYPES.iter().find(|(name, _)| *name == kind) else {
        let supported: Vec<&str> = TYPES.iter().map(|(name, _)| *name).collect();
        return Err(unsupported(
            config,
            format_args!("rope type {kind:?} is not supported; supported are {}", supported.join(", ")),
        ));
    };
    f.check_known_but(
        family.own_rope_keys,
        known,
        &format!("a key that rope type {kind:?} does not know; it would have no effect"),
    )?;
    let original = || -> Result<f64> {
        const KEY: &str = "original_max_position_embeddings";
        if config.is_null(KEY) || f.is_null(KEY) {
            return Err(f.malformed(&format!(
                "rope scaling: {KEY} is null, but rope type {kind:?} scales by it; write the number of positions that the \
                 model was first trained with, or remove the key if that is max_position_embeddings"
            )));
        }
        // Some models have it beside the parameters; it counts more there.
        let found = match config.number("original_max_position_embeddings")? {
            Some(found) => Some(found),
            None => f.number("original_max_position_embeddings")?,
        };
        match found.unwrap_or(positions as f64) {
            found if found >= 1.0 => Ok(found),
            found => Err(f.malformed(&format!("rope scaling: original_max_position_embeddings is {found}"))),
        }
    };
    let mut context = positions;
    let (scaling, attention_factor) = match *kind {
        "default" => (RopeScaling::None, 1.0),
        "dynamic" => {
            let factor = f.positive("factor")?;
            if width <= 2 {
                return Err(f.malformed(&format!(
                    "rope scaling: type {kind:?} needs more than the {width} components of a head that turn"
                )));
            }
            // As far as vLLM lets it grow; transformers knows no end.
            context = context.max((positions as f64 * factor) as usize).min(limit::POSITIONS);
            (RopeScaling::Dynamic { factor, original: positions }, 1.0)
        }
        "linear" => (RopeScaling::Linear { factor: f.positive("factor")? }, 1.0),
        // All of the head is rotated (partial_rotary_factor is 1).
        "proportional" if f.is_there("factor") => {
            (RopeScaling::Linear { factor: f.positive("factor")? }, 1.0)
        }
        "proportional" => (RopeScaling::None, 1.0),
        "llama3" => (llama3(&f, original()?)?, 1.0),
        "longrope" => longrope(&f, original()?, width, positions)?,
        _ => yarn(&f, original()?, positions)?,
    };
    Ok(Rope { theta, scaling, attention_factor, width, local_theta, positions: context })
}

/// The parameters of layers without a window, and the base of those with one.
fn by_layer_type<'a>(
    config: &Fields<'a>,
    parameters: Option<Fields<'a>>,
    default: f64,
) -> Result<(Option<Fields<'a>>, Option<f64>)> {
    const TYPES: KnownKeys =
        KnownKeys { read: &[&["full_attention", "sliding_attention"]], harmless: &[], neutral: &[] };
    let older = config.number("rope_local_base_freq")?.unwrap_or(default);
    let Some(parameters) = parameters else { return Ok((None, Some(older))) };
    parameters.check_known(
        &TYPES,
        "a key that this class does not know: its layers of two types have each their own",
    )?;
    let theta = match parameters.object("sliding_attention")? {
        None => older,
        Some(sliding) => {
            if let Some(kind) = sliding.string("rope_type")?.filter(|kind| *kind != "default") {
                return Err(unsupported(
                    config,
                    format_args!(
                        "rope type {kind:?} of layers with a window is not supported; supported is \"default\""
                    ),
                ));
            }
            sliding.check_known(
                &SLIDING,
                "a key that rope type \"default\" does not know; it would have no effect",
            )?;
            if sliding.has("rope_theta") { sliding.positive("rope_theta")? } else { older }
        }
    };
    Ok((parameters.object("full_attention")?.filter(|full| !full.is_empty()), Some(theta)))
}

/// Of layers with a window.
const SLIDING: KnownKeys = keys(&[&["rope_type", "rope_theta"]]);

fn unsupported(f: &Fields<'_>, what: std::fmt::Arguments<'_>) -> FormatError {
    FormatError::Unsupported(format!("{}: {what}", f.path().display()))
}

/// The base: that of the parameters, else the one beside them, else the family's.
fn theta(config: &Fields<'_>, own: Option<&Fields<'_>>, default: f64) -> Result<f64> {
    let holder = own.filter(|f| f.has("rope_theta")).unwrap_or(config);
    if !holder.has("rope_theta") {
        return Ok(default);
    }
    match holder.number("rope_theta")? {
        Some(theta) if theta > 0.0 => Ok(theta),
        Some(theta) => Err(holder.malformed(&format!("rope_theta is {theta}"))),
        None => Err(holder.malformed(
            "rope_theta is null, which says no base for the rotary embedding; write the number that the model was trained \
             with (10000 for most older models)",
        )),
    }
}

/// Components of a head that are turned: all, or the share that a family that knows of it asks for.
fn width(config: &Fields<'_>, own: Option<&Fields<'_>>, family: &Family, head_dim: usize) -> Result<usize> {
    // That of the parameters counts more.
    for f in own.into_iter().chain([config]) {
        let Some(part) = f.number("partial_rotary_factor")? else { continue };
        if part == 1.0 {
            return Ok(head_dim);
        }
        if !family.partial_rotary {
            return Err(unsupported(
                f,
                format_args!(
                    "partial_rotary_factor {part} is not supported for {}; supported is 1",
                    family.class
                ),
            ));
        }
        let width = (head_dim as f64 * part) as usize;
        if width < 2 || width > head_dim || !width.is_multiple_of(2) {
            return Err(f.malformed(&format!(
                "partial_rotary_factor {part} turns {width} components of heads of {head_dim}; it must be an even number \
                 from 2 on"
            )));
        }
        return Ok(width);
    }
    Ok(head_dim)
}

fn llama3(f: &Fields<'_>, original: f64) -> Result<RopeScaling> {
    let low_freq_factor = f.positive("low_freq_factor")?;
    let high_freq_factor = f.positive("high_freq_factor")?;
    if high_freq_factor <= low_freq_factor {
        return Err(f.malformed(&format!(
            "rope scaling: high_freq_factor {high_freq_factor} is not above low_freq_factor {low_freq_factor}"
        )));
    }
    Ok(RopeScaling::Llama3 {
        factor: f.positive("factor")?,
        low_freq_factor,
        high_freq_factor,
        original_max_position_embeddings: original,
    })
}

/// The divisor: `factor`, or, where that is null (or missing, if it `may`), how much longer the context has become.
fn divisor(f: &Fields<'_>, original: f64, positions: usize, may_miss: bool) -> Result<f64> {
    if f.is_there("factor") || !(may_miss || f.has("factor")) {
        return f.positive("factor");
    }
    Ok(positions as f64 / original)
}

fn longrope(f: &Fields<'_>, original: f64, width: usize, positions: usize) -> Result<(RopeScaling, f64)> {
    let (short, long) = (f.numbers("short_factor")?, f.numbers("long_factor")?);
    let factor = divisor(f, original, positions, true)?;
    for (name, list) in [("short_factor", &short), ("long_factor", &long)] {
        if list.len() != width / 2 {
            return Err(f.malformed(&format!(
                "rope scaling: {name} holds {} divisors for {width} components that turn, but there must be half as many",
                list.len()
            )));
        }
        if let Some(bad) = list.iter().find(|x| !(**x as f32).is_finite() || **x as f32 <= 0.0) {
            return Err(f.malformed(&format!("rope scaling: {name} holds {bad}")));
        }
    }
    let attention_factor = match f.number("attention_factor")? {
        Some(given) => given,
        None if factor <= 1.0 => 1.0,
        None => (1.0 + factor.ln() / original.ln()).sqrt(),
    };
    let [short, long] = [short, long].map(|list| list.into_iter().map(|x| x as f32).collect::<Vec<_>>());
    let scaling = if short == long || positions as f64 <= original {
        RopeScaling::Factors(short)
    } else {
        RopeScaling::LongRope { short, long, original: original as usize }
    };
    Ok((scaling, checked(f, attention_factor)?))
}

fn yarn(f: &Fields<'_>, original: f64, positions: usize) -> Result<(RopeScaling, f64)> {
    let factor = divisor(f, original, positions, false)?;
    let scale = |mscale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 };
    // Zero counts as missing for these.
    let given = |key: &str| Ok::<_, FormatError>(f.number(key)?.filter(|x| *x != 0.0));
    let attention_factor = match (f.number("attention_factor")?, given("mscale")?, given("mscale_all_dim")?) {
        (Some(given), ..) => given,
        (None, Some(mscale), Some(all)) => scale(mscale) / scale(all),
        (None, ..) => scale(1.0),
    };
    let (beta_fast, beta_slow) = (given("beta_fast")?.unwrap_or(32.0), given("beta_slow")?.unwrap_or(1.0));
    if !(beta_slow > 0.0 && beta_fast >= beta_slow) {
        return Err(f.malformed(&format!(
            "rope scaling: beta_slow {beta_slow} and beta_fast {beta_fast} must be above 0, and the second not below \
             the first"
        )));
    }
    let truncate = if f.has("truncate") { f.flag("truncate", false)? } else { true };
    let scaling = RopeScaling::Yarn {
        factor,
        beta_fast,
        beta_slow,
        original_max_position_embeddings: original,
        truncate,
    };
    Ok((scaling, checked(f, attention_factor)?))
}

fn checked(f: &Fields<'_>, attention_factor: f64) -> Result<f64> {
    if attention_factor.is_finite() && attention_factor > 0.0 {
        return Ok(attention_factor);
    }
    Err(f.malformed(&format!("rope scaling: attention_factor is {attention_factor}")))
}
