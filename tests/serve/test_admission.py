"""Admission: bounds hold, and places are given back exactly once on every path."""

from __future__ import annotations

import random
from contextlib import ExitStack, suppress

import pytest

from tessella.errors import ServeError
from tessella.serve.admission import Admission


def test_a_request_is_admitted_as_a_whole_or_not() -> None:
    admission = Admission(max_images=4, max_bytes=100)
    with admission.admit(3, 50):
        for images, size in ((2, 0), (1, 51)):
            with pytest.raises(ServeError) as refused:
                admission.admit(images, size)
            assert refused.value.code == "overloaded"
            assert (admission.images, admission.bytes) == (3, 50)
        with admission.admit(1, 50):
            assert admission.is_full
    assert (admission.images, admission.bytes) == (0, 0)


@pytest.mark.parametrize(("images", "size"), [(5, 0), (1, 101)])
def test_a_request_that_never_fits_says_so(images: int, size: int) -> None:
    with pytest.raises(ServeError) as refused:
        Admission(max_images=4, max_bytes=100).admit(images, size)
    assert refused.value.code == "too_many_images"


def test_places_are_given_back_once() -> None:
    admission = Admission(max_images=9, max_bytes=99)
    with admission.admit(1, 10):
        ticket = admission.admit(2, 20)
        ticket.add(0, 5)
        with pytest.raises(KeyError), ticket:
            raise KeyError
        ticket.__exit__()
        assert (admission.images, admission.bytes) == (1, 10)


def test_growth_that_is_refused_takes_nothing() -> None:
    admission = Admission(max_images=2, max_bytes=30)
    with admission.admit(1, 10) as ticket:
        with pytest.raises(ServeError):
            ticket.add(0, 21)
        assert admission.bytes == 10
    assert admission.bytes == 0


def test_a_request_that_would_wait_too_long_is_refused() -> None:
    admission = Admission(max_images=100, max_bytes=100)
    with admission.admit(1, 1) as first:
        first.expect(50.0, 10.0)  # nobody is before it, so it may try
        with admission.admit(1, 1) as second, pytest.raises(ServeError) as refused:
            second.expect(0.1, 10.0)
        assert refused.value.code == "overloaded"
        with admission.admit(1, 1) as third:
            third.expect(0.1, 100.0)
            assert admission.seconds == pytest.approx(50.1)
        assert admission.seconds == pytest.approx(50.0)
    assert admission.seconds == pytest.approx(0.0)


def test_random_requests_never_exceed_the_bounds() -> None:
    rng = random.Random(0)
    admission = Admission(max_images=20, max_bytes=1000)
    held: list[ExitStack] = []
    for _ in range(5000):
        if held and rng.random() < 0.5:
            held.pop(rng.randrange(len(held))).close()
        else:
            with suppress(ServeError), ExitStack() as stack:
                ticket = stack.enter_context(admission.admit(rng.randint(0, 8), rng.randint(0, 300)))
                ticket.add(0, rng.randint(0, 300))
                held.append(stack.pop_all())
        assert 0 <= admission.images <= 20
        assert 0 <= admission.bytes <= 1000
    for stack in held:
        stack.close()
    assert (admission.images, admission.bytes) == (0, 0)
