// How weights become the operand of the tensor cores, by what the activations are.
#pragma once

#include "dequantize16.cuh"

template <Activations A, Weights W, int Group>
struct Operand {
    using Chunk = Chunk16<W, Group>;
    using Words = Words16<A, W, Group>;
};

template <Weights W, int Group>
struct Operand<kInt8, W, Group> {
    using Chunk = ::Chunk<W, Group>;
    using Words = ::Words<W, Group>;
};
