"""Neurons of the MLPs that tell two poles apart: found, kept on disk, and steered."""

from personality_vector.interventions.neurons.chosen import Neurons, NeuronSet
from personality_vector.interventions.neurons.find import find_neurons
from personality_vector.interventions.neurons.steering import RESPONSE, NeuronSteering

__all__ = ["RESPONSE", "NeuronSet", "NeuronSteering", "Neurons", "find_neurons"]
