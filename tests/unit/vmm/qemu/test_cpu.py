from __future__ import annotations

from wrenn_sandbox.vmm.qemu.cpu import models


def _cpuinfo(vendor: str, flags: str) -> str:
    one = f"processor\t: 0\nvendor_id\t: {vendor}\nmodel name\t: x\nflags\t\t: {flags}\n\n"
    return one + one.replace("processor\t: 0", "processor\t: 1").replace(flags, "none")


def test_models_of_the_vendor_that_the_flags_allow_best_first() -> None:
    found = models(_cpuinfo("AuthenticAMD", "fpu avx2 clwb rdpid umip sha_ni adx"))
    assert found == ("EPYC-Rome,enforce", "EPYC,enforce", "Westmere-v1,enforce", "Nehalem-v1,enforce", "qemu64")


def test_intel() -> None:
    assert models(_cpuinfo("GenuineIntel", "avx2 movbe bmi2 adx rdseed"))[:2] == (
        "Broadwell-noTSX,enforce",
        "Haswell-noTSX,enforce",
    )


def test_an_unknown_cpu_gets_the_old_models() -> None:
    assert models("") == ("Westmere-v1,enforce", "Nehalem-v1,enforce", "qemu64")


def test_never_whatever_the_host_is() -> None:
    everything = "avx512f avx512_bf16 vaes fsrm avx2 pku clwb rdpid umip sha_ni adx amx_tile avx512_fp16"
    for vendor in ("AuthenticAMD", "GenuineIntel"):
        assert not {name.partition(",")[0] for name in models(_cpuinfo(vendor, everything))} & {"host", "max"}
