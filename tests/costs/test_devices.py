from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from importlib import resources

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from fedprune.costs.devices import (
    DEFAULT_PROFILE,
    DeviceProfile,
    assign,
    client_profiles,
    joules,
    profile,
    profiles,
    resolve,
)
from fedprune.errors import ScenarioError
from fedprune.scenario import DeviceShare

MIB = 2**20
NUMBERS = {"memory": 64 * MIB, "compute": 2e9, "downlink": 2.5e6, "uplink": 625e3}


def test_every_number_of_the_file_has_its_source_and_says_what_kind_it_is():
    text = resources.files("fedprune.costs").joinpath("profiles.yaml").read_text(encoding="utf-8")
    for name, entry in yaml.safe_load(text).items():
        assert entry.pop("device"), name
        assert {"memory", "compute", "downlink", "uplink"} <= set(entry), name
        for key, item in entry.items():
            assert set(item) == {"value", "source"}, (name, key)
            assert item["source"].strip(), (name, key)
        for key in ("memory", "compute", "availability", "dropout"):
            kind = entry[key]["source"].split()[0].rstrip(":,")
            assert kind in {"datasheet", "measured", "estimate", "assumed"}, (name, key)


def test_the_profiles_that_the_plan_asks_for_are_there():
    boards = {"raspberry-pi-zero-2-w", "raspberry-pi-4", "raspberry-pi-5", "jetson-orin-nano", "portenta-h7"}
    assert boards | {"phone-low-end", "phone-high-end", "laptop"} <= profiles().keys()


def test_profiles_are_in_si_units_of_a_plausible_size():
    for name, device in profiles().items():
        assert device.name == name
        assert MIB <= device.memory <= 2**37
        assert 0 < device.availability <= 1
        assert 0 <= device.dropout < 0.2
        assert 1e6 <= device.compute <= 1e13
        assert 1e4 <= device.uplink <= device.downlink <= 1e9
        assert device.joules_per_flop is None or 1e-13 < device.joules_per_flop < 1e-8
        assert device.joules_per_byte is None or 1e-8 < device.joules_per_byte < 1e-4
        assert "compute:" in device.source


def test_profiles_are_listed_from_the_weakest_and_hold_the_default():
    speeds = [device.compute for device in profiles().values()]
    assert speeds == sorted(speeds)
    assert DEFAULT_PROFILE in profiles()


def test_an_unknown_profile_gets_the_nearest_names():
    with pytest.raises(ScenarioError, match=r"'rasberry-pi4' is unknown; did you mean raspberry-pi-4"):
        profile("rasberry-pi4")


@pytest.mark.parametrize(
    ("field", "value"),
    [("memory", 0), ("compute", float("nan")), ("uplink", -1.0), ("dropout", 1.5), ("joules_per_flop", -1.0)],
)
def test_impossible_numbers_are_refused(field, value):
    with pytest.raises(ScenarioError, match=field):
        DeviceProfile(name="x", **{**NUMBERS, field: value})


def test_resolve_takes_a_name_or_four_numbers():
    assert resolve("raspberry-pi-5") == profile("raspberry-pi-5")
    assert resolve(**NUMBERS) == DeviceProfile(name="custom", **NUMBERS)
    small = resolve("raspberry-pi-5", memory=MIB)
    assert (small.memory, small.compute) == (MIB, profile("raspberry-pi-5").compute)
    with pytest.raises(ScenarioError, match="needs compute, uplink"):
        resolve(memory=1, downlink=1.0)


def test_clients_get_the_devices_of_the_scenario():
    shares = [DeviceShare(profile="raspberry-pi-4", share=0.75), DeviceShare(**NUMBERS, share=0.25)]
    names = [device.name for device in client_profiles(shares, 8, seed=1)]
    assert sorted(names) == ["custom-1"] * 2 + ["raspberry-pi-4"] * 6
    assert {device.name for device in client_profiles([], 3, seed=1)} == {DEFAULT_PROFILE}


def test_counts_go_to_clients_in_the_order_of_their_numbers():
    kinds = [DeviceShare(profile="laptop", count=2), DeviceShare(**NUMBERS, name="mine", count=3)]
    for seed in range(3):
        names = [device.name for device in client_profiles(kinds, 5, seed=seed)]
        assert names == ["laptop"] * 2 + ["mine"] * 3


def test_a_scenario_may_say_how_reliable_a_device_is():
    shy = DeviceShare(profile="laptop", availability=0.1)
    numbers = DeviceShare(**NUMBERS, dropout=0.5, joules_per_flop=1e-9)
    assert client_profiles([shy], 1, 0) == [replace(profile("laptop"), availability=0.1, dropout=0.0)]
    assert client_profiles([shy], 1, 0, churn=True) == [replace(profile("laptop"), availability=0.1)]
    assert client_profiles([], 1, 0, churn=True) == [profile(DEFAULT_PROFILE)]
    assert client_profiles([numbers], 1, 0) == [
        DeviceProfile(name="custom-1", **NUMBERS, dropout=0.5, joules_per_flop=1e-9)
    ]


share_lists = st.lists(st.integers(0, 100), min_size=1, max_size=6).filter(any)


@given(weights=share_lists, count=st.integers(0, 300), seed=st.integers(0, 2**40))
def test_assignment_is_proportional_to_less_than_one_client(weights, count, seed):
    shares = [weight / 64 for weight in weights]  # exact in binary
    classes = assign(shares, count, seed)
    assert len(classes) == count
    for index, weight in enumerate(weights):
        exact = Fraction(weight * count, sum(weights))
        assert abs(classes.count(index) - exact) < 1


@given(weights=share_lists, count=st.integers(0, 50), seed=st.integers(0, 2**40))
def test_assignment_depends_on_the_seed_alone_for_its_order_only(weights, count, seed):
    classes = assign(weights, count, seed)
    assert assign(weights, count, seed) == classes
    assert sorted(assign(weights, count, seed + 1)) == sorted(classes)


def test_assignment_is_shuffled():
    assert len({tuple(assign([1, 1], 20, seed)) for seed in range(10)}) == 10


def test_the_largest_remainders_are_rounded_up():
    # 10 clients: 4.25, 2.75, 3.0 exactly; the one client left over goes to the second class
    assert sorted(assign([4.25, 2.75, 3.0], 10, 0)) == [0] * 4 + [1] * 3 + [2] * 3


@pytest.mark.parametrize("shares", [[], [0.0, 0.0], [1.0, -0.5], [float("inf")]])
def test_impossible_shares_are_refused(shares):
    with pytest.raises(ScenarioError, match="device shares"):
        assign(shares, 3, 0)


def test_energy_is_of_computing_and_of_the_radio_or_unknown():
    device = DeviceProfile(name="x", **NUMBERS, joules_per_flop=1e-9, joules_per_byte=1e-6)
    assert joules(device, flops=2_000_000_000, transferred=500_000) == pytest.approx(2.5)
    assert joules(DeviceProfile(name="x", **NUMBERS, joules_per_flop=1e-9), 1, 1) is None
