"""The loss that tests of criteria and growth learn by: a task's own."""

from __future__ import annotations

from fedprune.tasks import classification_of

cross_entropy = classification_of((1,)).loss
