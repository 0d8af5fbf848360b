//! Hadamard matrices: orthogonal, and all entries of one size, so that an outlier is spread over all channels alike.

/// A normalised Hadamard matrix of this width, row-major, `None` if none can be built from the constructions known here
/// (Sylvester, Paley I and II, and their products).
pub fn hadamard(width: usize) -> Option<Vec<f32>> {
    let mut signs = vec![1i8];
    let mut order = 1;
    for factor in plan(width)? {
        let right = factor.build();
        let n = factor.order();
        let mut product = Vec::with_capacity((order * n) * (order * n));
        for left in signs.chunks_exact(order) {
            for right in right.chunks_exact(n) {
                for &a in left {
                    product.extend(right.iter().map(|&b| a * b));
                }
            }
        }
        (signs, order) = (product, order * n);
    }
    let unit = (1.0 / (width as f64).sqrt()) as f32;
    Some(signs.into_iter().map(|s| f32::from(s) * unit).collect())
}

/// A construction of a Hadamard matrix that is not a product.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Factor {
    /// Sylvester's: `[[1, 1], [1, -1]]`, of order 2.
    Sylvester,
    /// Order `q + 1`, for a [`Field`] of order `q = 3 mod 4`.
    PaleyI(usize),
    /// Order `2 (q + 1)`, for a [`Field`] of order `q = 1 mod 4`.
    PaleyII(usize),
}

/// Factors whose orders have the product `n`.
pub(super) fn plan(n: usize) -> Option<Vec<Factor>> {
    match n {
        1 => return Some(vec![]),
        2 => return Some(vec![Factor::Sylvester]),
        _ if n == 0 || !n.is_multiple_of(4) => return None,
        _ => {}
    }
    if let Some(mut factors) = plan(n / 2) {
        factors.insert(0, Factor::Sylvester);
        return Some(factors);
    }
    let is_field = |q: usize| Field::new(q).is_some();
    if is_field(n - 1) {
        return Some(vec![Factor::PaleyI(n - 1)]);
    }
    if n / 2 % 4 == 2 && is_field(n / 2 - 1) {
        return Some(vec![Factor::PaleyII(n / 2 - 1)]);
    }
    (4..).step_by(4).take_while(|d| d * d <= n).filter(|&d| n.is_multiple_of(d)).find_map(|d| {
        let mut factors = plan(d)?;
        factors.extend(plan(n / d)?);
        Some(factors)
    })
}

impl Factor {
    pub(super) fn order(self) -> usize {
        match self {
            Factor::Sylvester => 2,
            Factor::PaleyI(q) => q + 1,
            Factor::PaleyII(q) => 2 * (q + 1),
        }
    }

    /// Signs, row-major (R. E. A. C. Paley, "On orthogonal matrices", 1933).
    fn build(self) -> Vec<i8> {
        let (q, skew) = match self {
            Factor::Sylvester => return vec![1, 1, 1, -1],
            Factor::PaleyI(q) => (q, true),
            Factor::PaleyII(q) => (q, false),
        };
        // The conference matrix: a border of ones around the quadratic characters of the differences; zero diagonal.
        let n = q + 1;
        let field = Field::new(q).expect("the plan names orders of fields only");
        let character = field.quadratic_character();
        let mut conference = vec![0i8; n * n];
        for i in 0..q {
            conference[i + 1] = 1;
            conference[(i + 1) * n] = if skew { -1 } else { 1 };
            for j in 0..q {
                conference[(i + 1) * n + j + 1] = character[field.subtract(i, j)];
            }
        }
        if skew {
            (0..n).for_each(|i| conference[i * n + i] = 1);
            return conference;
        }
        let mut out = vec![0i8; 4 * n * n];
        for i in 0..n {
            for j in 0..n {
                let tile = match conference[i * n + j] {
                    0 => [1, -1, -1, -1],
                    c => [c, c, c, -c],
                };
                for (t, value) in tile.into_iter().enumerate() {
                    out[(2 * i + t / 2) * 2 * n + 2 * j + t % 2] = value;
                }
            }
        }
        out
    }
}

/// The finite field of `q` elements: the integers mod a prime, or polynomials over them, written as numbers in base `p`,
/// modulo an irreducible polynomial.
pub(super) struct Field {
    p: usize,
    q: usize,
    /// Coefficients of `x^m` in terms of lower powers, for polynomials of degree below `m`.
    reduction: &'static [usize],
}

impl Field {
    /// For an odd prime, and for the three powers of primes that give orders which hidden sizes of known models are made
    /// of: 28 (896, 3584, 7168), 52 (6656) and 100 (1600, 3200). Other powers give no such size that primes do not.
    pub(super) fn new(q: usize) -> Option<Self> {
        let is_odd_prime =
            q % 2 == 1 && q > 1 && (3..).take_while(|d| d * d <= q).all(|d| !q.is_multiple_of(d));
        let (p, reduction): (_, &[usize]) = match q {
            25 => (5, &[2, 0]),
            27 => (3, &[1, 1, 0]),
            49 => (7, &[3, 0]),
            _ if is_odd_prime => (q, &[0]),
            _ => return None,
        };
        Some(Self { p, q, reduction })
    }

    fn digits(&self, a: usize) -> impl Iterator<Item = usize> {
        (0..self.reduction.len() as u32).map(move |i| a / self.p.pow(i) % self.p)
    }

    fn number(&self, digits: impl Iterator<Item = usize>) -> usize {
        digits.enumerate().map(|(i, digit)| digit * self.p.pow(i as u32)).sum()
    }

    pub(super) fn subtract(&self, a: usize, b: usize) -> usize {
        self.number(self.digits(a).zip(self.digits(b)).map(|(a, b)| (a + self.p - b) % self.p))
    }

    fn square(&self, a: usize) -> usize {
        let a: Vec<usize> = self.digits(a).collect();
        let mut product = vec![0; a.len()];
        // Horner's scheme: the product so far times x, plus the next digit times a.
        for digit in a.iter().rev() {
            product.rotate_right(1);
            let over = std::mem::take(&mut product[0]);
            for ((v, r), a) in product.iter_mut().zip(self.reduction).zip(&a) {
                *v = (*v + over * r + digit * a) % self.p;
            }
        }
        self.number(product.into_iter())
    }

    /// 1 for squares, -1 for the others, 0 for 0.
    pub(super) fn quadratic_character(&self) -> Vec<i8> {
        let mut character = vec![-1; self.q];
        character[0] = 0;
        for a in 1..self.q {
            character[self.square(a)] = 1;
        }
        character
    }
}
