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
    /// Order 2.
    Sylvester,
    /// Order `q + 1` for a prime power `q = 3 mod 4`.
    PaleyI(usize),
    /// Order `2 (q + 1)` for a prime power `q = 1 mod 4`.
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
    let prime_power = |q: usize| GaloisField::prime_power(q).is_some();
    if n.is_multiple_of(4) && prime_power(n - 1) {
        return Some(vec![Factor::PaleyI(n - 1)]);
    }
    if n / 2 % 4 == 2 && prime_power(n / 2 - 1) {
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
        let field = GaloisField::new(q).expect("the plan names prime powers only");
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

/// The finite field of `p^m` elements: polynomials over the integers mod `p`, written as numbers in base `p`, modulo an
/// irreducible polynomial of degree `m`.
pub(super) struct GaloisField {
    p: usize,
    m: usize,
    /// Coefficients of `x^m` in terms of lower powers.
    reduction: Vec<usize>,
}

impl GaloisField {
    /// `q = p^m`, for odd `q`.
    pub(super) fn prime_power(q: usize) -> Option<(usize, usize)> {
        if q < 3 || q.is_multiple_of(2) {
            return None;
        }
        let p = (3..).step_by(2).take_while(|p| p * p <= q).find(|&p| q.is_multiple_of(p)).unwrap_or(q);
        let (mut rest, mut m) = (q, 0);
        while rest.is_multiple_of(p) {
            rest /= p;
            m += 1;
        }
        (rest == 1).then_some((p, m))
    }

    pub(super) fn new(q: usize) -> Option<Self> {
        let (p, m) = Self::prime_power(q)?;
        (0..q)
            .map(|low| {
                let mut field = GaloisField { p, m, reduction: Vec::new() };
                field.reduction = field.digits(low);
                field
            })
            .find(|field| {
                // In a field of odd order half of the other elements are squares, and none squares to 0; a ring modulo
                // a reducible polynomial has fewer squares, or elements that square to 0.
                let character = field.quadratic_character();
                character[0] == 0 && character.iter().filter(|&&c| c == 1).count() == (q - 1) / 2
            })
    }

    pub(super) fn order(&self) -> usize {
        self.p.pow(self.m as u32)
    }

    fn digits(&self, mut a: usize) -> Vec<usize> {
        (0..self.m)
            .map(|_| {
                let digit = a % self.p;
                a /= self.p;
                digit
            })
            .collect()
    }

    fn number(&self, digits: &[usize]) -> usize {
        digits.iter().rev().fold(0, |a, d| a * self.p + d)
    }

    pub(super) fn subtract(&self, a: usize, b: usize) -> usize {
        let (mut a, b) = (self.digits(a), self.digits(b));
        for (a, b) in a.iter_mut().zip(b) {
            *a = (*a + self.p - b) % self.p;
        }
        self.number(&a)
    }

    fn square(&self, a: usize) -> usize {
        let a = self.digits(a);
        let mut product = vec![0; 2 * self.m - 1];
        for (i, x) in a.iter().enumerate() {
            for (j, y) in a.iter().enumerate() {
                product[i + j] = (product[i + j] + x * y) % self.p;
            }
        }
        for high in (self.m..product.len()).rev() {
            let factor = product[high];
            for (i, r) in self.reduction.iter().enumerate() {
                let at = high - self.m + i;
                product[at] = (product[at] + factor * r) % self.p;
            }
        }
        self.number(&product[..self.m])
    }

    /// 1 for squares, -1 for the others, 0 for 0 (which is 1 if an element other than 0 squares to 0: no field).
    pub(super) fn quadratic_character(&self) -> Vec<i8> {
        let mut character = vec![-1; self.order()];
        character[0] = 0;
        for a in 1..self.order() {
            character[self.square(a)] = 1;
        }
        character
    }
}
