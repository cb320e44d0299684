"""What results say of the machine they were measured on."""

import platform

from sparsemble.evaluation.environment import described

EPYC = """processor\t: 0
vendor_id\t: AuthenticAMD
cpu family\t: 26
model\t\t: 2
model name\t: AMD EPYC
stepping\t: 1

processor\t: 1
cpu family\t: 27
"""
ARM = """processor\t: 0
BogoMIPS\t: 50.00
CPU implementer\t: 0x41
CPU variant\t: 0x3
CPU part\t: 0xd0c
"""


def test_a_processors_generation_is_told() -> None:
    assert described(EPYC) == "AMD EPYC (AuthenticAMD, family 26, model 2, stepping 1)"
    assert described(ARM) == f"{platform.machine()} (implementer 0x41, variant 0x3, part 0xd0c)"


def test_without_numbers_there_is_the_name() -> None:
    assert described("model name : A processor\n") == "A processor"
    assert described("") == platform.machine()
