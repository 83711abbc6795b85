"""Which CPU a guest sees: a named model, so that a snapshot's guest finds the same CPU wherever it is restored.

Under TCG all hosts emulate the same ``max``. Under KVM the best named model the host has all features of is found by
trying, best first: ``enforce`` makes QEMU refuse to start rather than quietly leave a feature out. The last resort is
the least model without that: its snapshots may not restore on a host with fewer features.
"""

from __future__ import annotations

TCG_MODEL = "max"
#: Best first, with flags of /proc/cpuinfo whose lack makes trying pointless.
_MODELS: dict[str, tuple[tuple[str, frozenset[str]], ...]] = {
    "AuthenticAMD": (
        ("EPYC-Genoa", frozenset({"avx512f", "avx512_bf16", "vaes", "fsrm"})),
        ("EPYC-Milan", frozenset({"avx2", "vaes", "fsrm", "pku"})),
        ("EPYC-Rome", frozenset({"avx2", "clwb", "rdpid", "umip"})),
        ("EPYC", frozenset({"avx2", "sha_ni", "adx"})),
    ),
    "GenuineIntel": (
        ("SapphireRapids", frozenset({"avx512f", "amx_tile", "avx512_fp16"})),
        ("Icelake-Server-noTSX", frozenset({"avx512f", "avx512_vnni", "vaes"})),
        ("Cascadelake-Server-noTSX", frozenset({"avx512f", "avx512_vnni"})),
        ("Skylake-Server-noTSX-IBRS", frozenset({"avx512f", "avx512vl"})),
        ("Broadwell-noTSX", frozenset({"avx2", "adx", "rdseed"})),
        ("Haswell-noTSX", frozenset({"avx2", "movbe", "bmi2"})),
    ),
}
_OLD_MODELS = ("Westmere-v1", "Nehalem-v1")
_LAST_RESORT = "qemu64"


def models(cpuinfo: str) -> tuple[str, ...]:
    """``-cpu`` arguments worth trying under KVM, best first; ``cpuinfo`` is the text of /proc/cpuinfo."""
    fields: dict[str, str] = {}
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    flags = frozenset(fields.get("flags", "").split())
    named = _MODELS.get(fields.get("vendor_id", ""), ())
    possible = [name for name, needed in named if needed <= flags]
    return (*(f"{name},enforce" for name in (*possible, *_OLD_MODELS)), _LAST_RESORT)
