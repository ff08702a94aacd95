import numpy as np
import pytest

from ftjax.data.numbers import describe_numbers, encode_numbers


def test_numbers_and_numbers_written_out():
    found = encode_numbers([{"label": label} for label in (3, 2.5, "1.25", " -4e2 ", "0")])
    np.testing.assert_array_equal(found, [3, 2.5, 1.25, -400, 0])
    assert found.dtype == np.float64


@pytest.mark.parametrize(
    "wrong", ["nan", "inf", float("nan"), "", "three", "3,5", None, True, [3.0], "1_0x"]
)
def test_what_is_no_number_is_refused_with_its_place(wrong):
    with pytest.raises(ValueError, match=r"record 2: the label is .*; a finite number such as 3.5"):
        encode_numbers([{"label": 1.0}, {"label": wrong}])


def test_what_a_person_is_told():
    told = describe_numbers(np.array([1.0, 2.0, 6.0]))
    assert told == "from 1 to 6, mean 3, standard deviation 2.16"
