// The optimiser's state split over ranks: after an update, each rank gives all others the weights that it has updated.
#pragma once
#include "model/parameters.h"

namespace dultra {

// Brings the numbers that other ranks have updated into the model (and into masters that every rank has whole), in the
// type that the model holds them in. Every rank calls it, with the model's weights held exclusively. `device`: ranks
// that exchange arrays of the backend's memory where they are, in fp32 but for the model's own numbers; or null.
void share_updates(Backend& backend, Weights& weights, const Parameters& parameters, Communicator& ranks,
                   Communicator* device);

}  // namespace dultra
