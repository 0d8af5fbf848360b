// How weights become the operand of the tensor cores, by what the activations are.
#pragma once

#include "dequantize16.cuh"

template <Activations A, Weights W, int Group>
struct Operand {
    using WeightTile = WeightTile16<W, Group>;
    using Words = Words16<A, W, Group>;
};

template <Weights W, int Group>
struct Operand<kInt8, W, Group> {
    using WeightTile = ::WeightTile<W, Group>;
    using Words = ::Words<W, Group>;
};
