"""A fake cluster for tests of TrainJobs."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from support.fake_kubernetes import FakeKubernetes, Story, granted_by
from support.train_jobs import ROLE


@pytest.fixture
def cluster() -> Iterator[Callable[..., FakeKubernetes]]:
    made: list[FakeKubernetes] = []

    def make(story: Story | None = None) -> FakeKubernetes:
        made.append(FakeKubernetes(story, granted_by(ROLE)))
        return made[-1]

    yield make
    for server in made:
        server.close()
