//! A block of the decoder: attention and gated MLP, each behind a norm and beside a residual connection.
//!
//! There is one way through a block, from site to site. [`Block::advance`] goes on to the input of a linear layer and stops
//! there; running a model takes all steps at once, calibration looks at each input on the way.

use qqq_backend::{AttentionKind, Backend, BackendError, Gate, HeadLayout, InputKind, Norm};
use qqq_formats::{ModelConfig, config::GateFunction};

use crate::{BlockNorms, BlockWeights, ModelError, Result, Site, names, rope};

/// One block on a backend.
pub struct Block<B: Backend> {
    /// What mixes tokens.
    pub mixer: Mixer<B>,
    /// What works on each token.
    pub mlp: Mlp<B>,
    /// Factor of what both add to the residual stream.
    pub residual_scale: f32,
    /// Norm before the mixer.
    pub input_norm: Norm<B>,
    /// Norm before the MLP.
    pub post_norm: Norm<B>,
    /// Norms of what attention gives, and of what the MLP gives, before the residual stream takes it.
    pub norms_after: Option<(Norm<B>, Norm<B>)>,
}

/// The first half of a block.
pub enum Mixer<B: Backend> {
    /// Attention over the KV cache.
    Attention(Attention<B>),
}

/// Attention with its projections.
pub struct Attention<B: Backend> {
    /// q, k, v joined.
    pub qkv: Layer<B>,
    /// Output projection of attention, `hidden x (heads * head_dim)`.
    pub o: Layer<B>,
    /// Heads, mask and scale.
    pub kind: AttentionKind,
    /// Norms of the heads of q and of k.
    pub qk_norm: Option<(Norm<B>, Norm<B>)>,
    /// The rotary embedding that turns queries and keys, of [`Step::ropes`].
    pub rope: Option<usize>,
}

/// The second half of a block.
pub enum Mlp<B: Backend> {
    /// One gated MLP for all tokens: `down(gate(g) * u)`.
    Dense(Dense<B>),
}

/// A gated MLP.
pub struct Dense<B: Backend> {
    /// gate and up joined.
    pub gate_up: Layer<B>,
    /// Down projection of the MLP, `hidden x intermediate`.
    pub down: Layer<B>,
    /// Function of the gate.
    pub gate: Gate,
}

/// A linear layer's place.
pub enum Layer<B: Backend> {
    /// With its weight.
    Ready(B::Linear),
    /// The weight is still to come, or was taken away; such is the input that is made for it.
    Awaited(InputKind),
}

/// Rows on their way through the blocks.
pub struct Flow<B: Backend> {
    /// Residual stream, shape `rows x hidden`.
    pub residual: B::Tensor,
    /// Input of the site at which the rows stand, unless that is the last one.
    input: B::Input,
    /// Input of the last site.
    inner: B::Input,
    at: Option<Site>,
    /// Factor with which [`Scratch::out`] is still to be added to the residual stream.
    pending: Option<f32>,
}

impl<B: Backend> Flow<B> {
    /// Rows before a block. `input` and `inner` are memory for the inputs of sites, `inner` for that of the last one.
    pub fn new(residual: B::Tensor, input: B::Input, inner: B::Input) -> Self {
        Self { residual, input, inner, at: None, pending: None }
    }

    /// The input of the site at which the rows stand.
    pub fn input(&self) -> Option<&B::Input> {
        match self.at? {
            Site::Down => Some(&self.inner),
            Site::Qkv | Site::O | Site::GateUp => Some(&self.input),
        }
    }

    /// Gives the memory back that holds no input at present.
    ///
    /// # Errors
    /// Those of the backend.
    pub fn shed(&mut self, b: &B) -> Result<()> {
        if self.at != Some(Site::Down) {
            self.inner = b.input(0, 0)?;
        }
        if !matches!(self.at, Some(Site::Qkv | Site::O | Site::GateUp)) {
            self.input = b.input(0, 0)?;
        }
        Ok(())
    }

    /// Goes back before the first block, whatever the rows were.
    pub fn restart(&mut self) {
        (self.at, self.pending) = (None, None);
    }
}

/// Memory for what lies between the sites of a block. Nothing in it outlives a step to the next site.
pub struct Scratch<B: Backend> {
    /// Queries, keys and values.
    pub qkv: B::Tensor,
    /// Output of attention.
    pub attention: B::Tensor,
    /// Output of gate and up.
    pub gate_up: B::Tensor,
    /// Output of o, and of down.
    pub out: B::Tensor,
}

impl<B: Backend> Scratch<B> {
    /// For up to `rows` rows at a time of a model.
    ///
    /// # Errors
    /// The backend has not the memory.
    pub fn new(b: &B, config: &ModelConfig, rows: usize) -> Result<Self> {
        let heads = head_layout(config);
        Ok(Self {
            qkv: b.tensor(rows, heads.qkv_width())?,
            attention: b.tensor(rows, heads.q_width())?,
            gate_up: b.tensor(rows, 2 * config.intermediate_size)?,
            out: b.tensor(rows, config.hidden_size)?,
        })
    }

    /// Where the output of a site's layer goes.
    pub fn output(&mut self, site: Site) -> &mut B::Tensor {
        match site {
            Site::Qkv => &mut self.qkv,
            Site::GateUp => &mut self.gate_up,
            Site::O | Site::Down => &mut self.out,
        }
    }
}

/// What a block runs with.
pub struct Step<'a, B: Backend> {
    /// What computes the step.
    pub backend: &'a B,
    /// Rotary embeddings of the step's sequences; a layer names its own by index.
    pub ropes: &'a [B::Rope],
    /// Keys and values.
    pub kv: &'a mut B::KvPool,
    /// The block's layer in the pool.
    pub layer: usize,
    /// Whose the rows are.
    pub batch: &'a B::Batch,
    /// What the step's operations write between sites.
    pub scratch: &'a mut Scratch<B>,
}

/// Told of an attention layer's input, and of its queries, keys and values after the rotary embedding.
pub type Tap<'a, B> =
    dyn FnMut(&<B as Backend>::Input, &<B as Backend>::Tensor) -> Result<(), BackendError> + 'a;

/// Told of rows that have come to a site of a layer: what the halves before it give is in the residual stream.
pub type Watch<'a, B> = dyn FnMut(usize, Site, &Flow<B>) -> Result<()> + 'a;

impl<B: Backend> Block<B> {
    /// Prepares weights on a backend. `index` is for error messages.
    ///
    /// # Errors
    /// A weight that the backend refuses.
    pub fn new(backend: &B, config: &ModelConfig, index: usize, weights: BlockWeights) -> Result<Self> {
        let BlockWeights { norms, layers } = weights;
        // Inputs are those of the weights that take their places.
        let mut block = Self::without_layers(backend, config, index, norms, InputKind::Float)?;
        let mut layers = layers.map(Some);
        for site in Site::ALL {
            if let Some(layer) = layers[site].take() {
                let linear = backend.linear_weight(layer.weight, layer.bias).map_err(|source| {
                    at(&names::linear(index, &site.module_names(config).join("+")), source)
                })?;
                *block.layer_mut(site) = Layer::Ready(linear);
            }
        }
        Ok(block)
    }

    /// Block `index`, whose layers are still to come, and take inputs of a kind.
    ///
    /// # Errors
    /// Those of the backend.
    pub fn without_layers(
        b: &B,
        config: &ModelConfig,
        index: usize,
        norms: BlockNorms,
        kind: InputKind,
    ) -> Result<Self> {
        let graph = &config.graph;
        let window = graph.windows.get(index).copied().flatten();
        let plain = AttentionKind::causal(head_layout(config), window);
        let offset = norms.offset;
        let norm = |mut weight: Vec<f32>| {
            weight.iter_mut().for_each(|w| *w += offset);
            Ok::<_, BackendError>(Norm { weight: b.vector(weight)?, eps: config.rms_norm_eps })
        };
        let pair = |pair: Option<(Vec<f32>, Vec<f32>)>| match pair {
            Some((a, b)) => Ok::<_, BackendError>(Some((norm(a)?, norm(b)?))),
            None => Ok(None),
        };
        let awaited = || Layer::Awaited(kind);
        let gate = match graph.gate {
            GateFunction::Silu => Gate::Silu,
            GateFunction::GeluTanh => Gate::GeluTanh,
        };
        Ok(Self {
            mixer: Mixer::Attention(Attention {
                qkv: awaited(),
                o: awaited(),
                kind: AttentionKind {
                    scale: graph.attention_scale.map_or(plain.scale, |s| s as f32),
                    ..plain
                },
                qk_norm: pair(norms.qk)?,
                rope: rope::index(config, index),
            }),
            mlp: Mlp::Dense(Dense { gate_up: awaited(), down: awaited(), gate }),
            residual_scale: graph.residual_scale as f32,
            input_norm: norm(norms.input)?,
            post_norm: norm(norms.post)?,
            norms_after: pair(norms.after)?,
        })
    }

    /// The layer at a site.
    pub fn layer(&self, site: Site) -> &Layer<B> {
        let (Mixer::Attention(attention), Mlp::Dense(mlp)) = (&self.mixer, &self.mlp);
        match site {
            Site::Qkv => &attention.qkv,
            Site::O => &attention.o,
            Site::GateUp => &mlp.gate_up,
            Site::Down => &mlp.down,
        }
    }

    /// The layer at a site, to be replaced.
    pub fn layer_mut(&mut self, site: Site) -> &mut Layer<B> {
        let (Mixer::Attention(attention), Mlp::Dense(mlp)) = (&mut self.mixer, &mut self.mlp);
        match site {
            Site::Qkv => &mut attention.qkv,
            Site::O => &mut attention.o,
            Site::GateUp => &mut mlp.gate_up,
            Site::Down => &mut mlp.down,
        }
    }

    /// The weight at a site.
    ///
    /// # Errors
    /// [`ModelError::Order`] if it is still to come.
    pub fn linear(&self, site: Site) -> Result<&B::Linear> {
        match self.layer(site) {
            Layer::Ready(linear) => Ok(linear),
            Layer::Awaited(_) => Err(ModelError::Order(format!("{site:?} has no weight yet"))),
        }
    }

    /// What the layer at a site takes.
    fn kind(&self, b: &B, site: Site) -> InputKind {
        match self.layer(site) {
            Layer::Ready(linear) => b.input_kind(linear),
            Layer::Awaited(kind) => *kind,
        }
    }

    /// Runs from the site before up to the input of `site`, which is [`Flow::input`] then.
    ///
    /// # Errors
    /// [`ModelError::Order`] if the rows do not stand at the site before (before the block, for the first one), or that has no
    /// weight; those of the backend.
    pub fn advance(&self, step: &mut Step<'_, B>, flow: &mut Flow<B>, site: Site) -> Result<()> {
        self.advance_tapped(step, flow, site, &mut |_, _| Ok(()))
    }

    /// As [`advance`](Self::advance); `tap` hears what attention works on, if that lies on the way.
    ///
    /// # Errors
    /// As [`advance`](Self::advance), and those of `tap`.
    pub fn advance_tapped(
        &self,
        step: &mut Step<'_, B>,
        flow: &mut Flow<B>,
        site: Site,
        tap: &mut Tap<'_, B>,
    ) -> Result<()> {
        let b = step.backend;
        let expected = match flow.at {
            None => Some(Site::Qkv),
            Some(at) => at.next(),
        };
        if expected != Some(site) {
            return Err(ModelError::Order(format!("from {:?} there is no step to {site:?}", flow.at)));
        }
        let kind = self.kind(b, site);
        match site {
            Site::Qkv => {
                let x = flow.pending.take().map(|scale| (&step.scratch.out, scale));
                b.add_norm(&mut flow.residual, x, &self.input_norm, kind, &mut flow.input)?;
            }
            Site::O => {
                self.project(step, flow)?;
                tap(&flow.input, &step.scratch.qkv)?;
                self.attend(step, kind, &mut flow.input)?;
            }
            Site::GateUp => {
                let out = &mut step.scratch.out;
                b.linear(&flow.input, self.linear(Site::O)?, out)?;
                if let Some((norm, _)) = &self.norms_after {
                    b.norm(out, norm)?;
                }
                let x = Some((&*out, self.residual_scale));
                b.add_norm(&mut flow.residual, x, &self.post_norm, kind, &mut flow.input)?;
            }
            Site::Down => {
                let Mlp::Dense(mlp) = &self.mlp;
                let linear = self.linear(Site::GateUp)?;
                let memory = &mut step.scratch.gate_up;
                b.gated_linear(&flow.input, linear, mlp.gate, kind, memory, &mut flow.inner)?;
            }
        }
        flow.at = Some(site);
        Ok(())
    }

    /// With the rows before q, k and v: makes these in [`Scratch::qkv`], norms and rotates them, and writes keys and values
    /// to the cache. The rows stay where they are.
    ///
    /// # Errors
    /// As [`advance`](Self::advance).
    pub fn project(&self, step: &mut Step<'_, B>, flow: &Flow<B>) -> Result<()> {
        if flow.at != Some(Site::Qkv) {
            return Err(ModelError::Order(format!("queries are not made from {:?}", flow.at)));
        }
        step.backend.linear(&flow.input, self.linear(Site::Qkv)?, &mut step.scratch.qkv)?;
        self.rotate(step)
    }

    fn rotate(&self, step: &mut Step<'_, B>) -> Result<()> {
        let Mixer::Attention(attention) = &self.mixer;
        let norms = attention.qk_norm.as_ref().map(|(q, k)| (q, k));
        let Step { backend, ropes, kv, layer, batch, scratch } = step;
        let heads = attention.kind.heads;
        let rope = attention.rope.map(|rope| &ropes[rope]);
        Ok(backend.rope_append(&mut scratch.qkv, heads, norms, rope, kv, *layer, batch)?)
    }

    fn attend(&self, step: &mut Step<'_, B>, kind: InputKind, out: &mut B::Input) -> Result<()> {
        let Mixer::Attention(attention) = &self.mixer;
        let Step { backend, kv, layer, batch, scratch, .. } = step;
        backend.attention(&scratch.qkv, &attention.kind, kv, *layer, batch, &mut scratch.attention)?;
        Ok(backend.to_input(&mut scratch.attention, kind, out)?)
    }

    /// What comes of the output of a site's layer on the way to the next site's input, as an input of a kind: attention of
    /// queries, keys and values, or the gated activation. The output is in [`Scratch::output`].
    ///
    /// # Errors
    /// [`ModelError::Order`] for another site; those of the backend.
    pub fn finish_site(
        &self,
        step: &mut Step<'_, B>,
        site: Site,
        kind: InputKind,
        out: &mut B::Input,
    ) -> Result<()> {
        match (site, &self.mlp) {
            (Site::Qkv, _) => {
                self.rotate(step)?;
                self.attend(step, kind, out)
            }
            (Site::GateUp, Mlp::Dense(mlp)) => {
                Ok(step.backend.gated(&step.scratch.gate_up, mlp.gate, kind, out)?)
            }
            (Site::O | Site::Down, _) => Err(ModelError::Order(format!("{site:?} is the end of its half"))),
        }
    }

    /// Leaves the block: its last layer runs, and what it gives is added to the residual stream.
    ///
    /// # Errors
    /// As [`advance`](Self::advance).
    pub fn finish(&self, step: &mut Step<'_, B>, flow: &mut Flow<B>) -> Result<()> {
        self.leave(step, flow)?;
        settle(step.backend, flow, step.scratch)
    }

    /// Leaves the block; what its last layer gives is added by the next block's norm, or by [`settle`].
    fn leave(&self, step: &mut Step<'_, B>, flow: &mut Flow<B>) -> Result<()> {
        if flow.at != Some(Site::Down) {
            return Err(ModelError::Order(format!("a block does not end at {:?}", flow.at)));
        }
        let out = &mut step.scratch.out;
        step.backend.linear(&flow.inner, self.linear(Site::Down)?, out)?;
        if let Some((_, norm)) = &self.norms_after {
            step.backend.norm(out, norm)?;
        }
        (flow.at, flow.pending) = (None, Some(self.residual_scale));
        Ok(())
    }

    /// The whole block; `watch` sees the rows at each site. After the last one, the rows must be [settled](settle).
    pub(crate) fn forward(
        &self,
        step: &mut Step<'_, B>,
        flow: &mut Flow<B>,
        watch: &mut Watch<'_, B>,
    ) -> Result<()> {
        for site in Site::ALL {
            self.advance(step, flow, site)?;
            watch(step.layer, site, flow)?;
        }
        self.leave(step, flow)
    }
}

/// Adds what is still to be added to the residual stream.
pub(crate) fn settle<B: Backend>(b: &B, flow: &mut Flow<B>, scratch: &Scratch<B>) -> Result<()> {
    if let Some(scale) = flow.pending.take() {
        b.add(&mut flow.residual, &scratch.out, scale)?;
    }
    Ok(())
}

/// Heads of a model's attention layers.
pub fn head_layout(config: &ModelConfig) -> HeadLayout {
    HeadLayout { num_heads: config.num_heads, num_kv_heads: config.num_kv_heads, head_dim: config.head_dim }
}

/// A backend's error with the layer it concerns.
pub(crate) fn at(name: &str, source: BackendError) -> ModelError {
    ModelError::Backend { name: name.into(), source }
}
