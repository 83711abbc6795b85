from wrenn_sandbox.image import rootfs
from wrenn_sandbox.image.debian import Mirror

MIRROR = Mirror("http://m.example/debian", "")


def test_what_people_count_on_is_there() -> None:
    asked = "bash coreutils python3 python3-pip python3-venv nodejs npm git curl sudo build-essential socat chrony"
    assert set(asked.split()) <= set(rootfs.PACKAGES)
    assert len(rootfs.PACKAGES) == len(set(rootfs.PACKAGES))


def test_the_user_may_become_root_without_a_password() -> None:
    assert "user ALL=(ALL:ALL) NOPASSWD: ALL" in rootfs._FILES["etc/sudoers.d/user"]
    assert (rootfs.USER, rootfs.USER_ID) == ("user", 1000)


def test_the_machine_id_is_there_and_empty() -> None:
    assert rootfs._FILES["etc/machine-id"] == ""


def test_the_host_name_resolves() -> None:
    assert rootfs.HOSTNAME in rootfs._FILES["etc/hosts"]


def test_another_size_is_another_image_and_the_mirror_is_not() -> None:
    keys = {rootfs.recipe(MIRROR).key, rootfs.recipe(MIRROR, 1024).key, rootfs.recipe(Mirror("http://n/", "")).key}
    assert len(keys) == 2


def test_the_hosts_way_to_a_mirror_holds_and_nothing_else_of_its_apt() -> None:
    dumped = (
        'Acquire "";\nAcquire::http "";\nAcquire::http::Proxy "http://p.example:3128";\nAcquire::Languages "none";\n'
    )
    assert rootfs.fetch_settings(dumped) == ['Acquire::http::Proxy "http://p.example:3128";']


def test_no_feature_that_older_kernels_refuse() -> None:
    assert "orphan_file" not in rootfs._FEATURES
    assert rootfs._FEATURES.startswith("none,")  # nothing from the host's mke2fs.conf
