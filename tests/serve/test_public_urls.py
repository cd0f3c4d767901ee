"""Which addresses are public, and which URLs are refused before any name is resolved."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_network

import pytest

from tessella.errors import ImageError
from tessella.serve.public_urls import is_public, parse_url

# The registries of special-purpose addresses (IANA), with multicast and other blocks that are not global unicast.
SPECIAL = [
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",  # shared by providers (CGNAT)
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.31.196.0/24",
    "192.52.193.0/24",
    "192.88.99.0/24",
    "192.168.0.0/16",
    "192.175.48.0/24",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "224.0.0.0/4",
    "240.0.0.0/4",
    "255.255.255.255/32",
    "168.63.129.16/32",  # the platform service of Azure
    "100.100.100.200/32",  # metadata of Alibaba Cloud
    "169.254.169.254/32",  # metadata of most clouds
    "192.0.0.192/32",  # metadata of Oracle Cloud
    "::/128",
    "::1/128",
    "::/96",  # IPv4-compatible
    "64:ff9b::/96",  # NAT64
    "64:ff9b:1::/48",
    "100::/64",
    "100:0:0:1::/64",
    "200::/7",
    "400::/6",
    "1000::/4",
    "2001::/32",  # Teredo
    "2001:1::/32",
    "2001:2::/48",
    "2001:3::/32",
    "2001:4:112::/48",
    "2001:10::/28",
    "2001:20::/28",
    "2001:30::/28",
    "2001:db8::/32",
    "2002::/16",  # 6to4
    "2620:4f:8000::/48",
    "3fff::/20",
    "4000::/2",
    "5f00::/16",
    "8000::/1",
    "fc00::/7",
    "fd00:ec2::254/128",  # metadata of AWS
    "fe80::/10",
    "fec0::/10",
    "ff00::/8",
]
GLOBAL = [
    *("1.1.1.1", "8.8.8.8", "9.9.9.9", "11.0.0.0", "93.184.215.14", "100.63.255.255", "100.128.0.0", "126.255.255.255"),
    *("128.0.0.0", "169.253.255.255", "169.255.0.0", "172.15.255.255", "172.32.0.0", "191.255.255.255", "192.0.1.0"),
    *("192.167.255.255", "192.169.0.0", "198.17.255.255", "198.20.0.0", "203.0.112.255", "223.255.255.255"),
    *("168.63.129.15", "168.63.129.17", "2001:200::", "2001:4860:4860::8888", "2003::", "2606:4700::1111", "2a00::1"),
    *("2001:db7:ffff::1", "2001:db9::", "2620:4f:7fff::1", "3ffe::1", "2606:2800:21f:cb07:6820:80da:af6b:8b2c"),
]


def first_middle_last(network: IPv4Network | IPv6Network) -> set[str]:
    return {str(network[0]), str(network[network.num_addresses // 2]), str(network[-1])}


@pytest.mark.parametrize("block", SPECIAL)
def test_special_addresses_are_not_public(block: str) -> None:
    addresses = first_middle_last(ip_network(block))
    addresses |= {f"::ffff:{address}" for address in addresses if ":" not in address}
    assert {address for address in addresses if is_public(address)} == set()


def embeddings(address: str) -> list[str]:
    """Return IPv6 addresses that carry an IPv4 address, some of them inside blocks that are global."""
    value = int(IPv4Address(address))
    high, low = f"{value >> 16:x}", f"{value & 0xFFFF:x}"
    inverted = value ^ 0xFFFF_FFFF
    return [
        f"::{address}",
        f"::ffff:0:{address}",
        f"64:ff9b::{address}",
        f"64:ff9b:1::{address}",
        f"2002:{high}:{low}::1",
        f"2001:0:{high}:{low}::1",  # the Teredo server
        f"2001::{inverted >> 16:x}:{inverted & 0xFFFF:x}",  # the Teredo client
        f"2a00:1450::5efe:{high}:{low}",  # ISATAP in a global prefix
        f"2a00:1450::200:5efe:{high}:{low}",
        f"fe80::5efe:{high}:{low}",
    ]


@pytest.mark.parametrize("address", ["127.0.0.1", "10.1.2.3", "169.254.169.254", "192.168.0.1", "8.8.8.8"])
def test_tunnels_to_ipv4_addresses_are_not_public(address: str) -> None:
    assert [text for text in embeddings(address) if is_public(text)] == []


def test_a_mapped_address_is_judged_by_the_address_in_it() -> None:
    assert is_public("::ffff:8.8.8.8")
    assert not is_public("::ffff:127.0.0.1")
    assert not is_public("::ffff:7f00:1")


@pytest.mark.parametrize("address", GLOBAL)
def test_global_addresses_are_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize("text", ["", "localhost", "8.8.8", "8.8.8.8 ", "2606:4700::1111%1", "::ffff:8.8.8.8%lo", "8"])
def test_other_text_is_not_public(text: str) -> None:
    assert not is_public(text)


@pytest.mark.parametrize(
    ("url", "host", "target"),
    [
        ("https://example.com", "example.com", "/"),
        ("HTTPS://Example.COM:443/a.jpg?size=1#top", "example.com", "/a.jpg?size=1"),
        ("https://example.com./a.jpg", "example.com", "/a.jpg"),
        ("https://example.com?a=b", "example.com", "/?a=b"),
        ("https://example.com/a%20b/%C3%BC.jpg", "example.com", "/a%20b/%C3%BC.jpg"),
        ("https://example.com/grün/日.jpg", "example.com", "/gr%C3%BCn/%E6%97%A5.jpg"),
        ("https://example.com/a|b^c`d{e}<f>\"g'.jpg", "example.com", "/a%7Cb%5Ec%60d%7Be%7D%3Cf%3E%22g'.jpg"),
        ("https://example.com/@user/a:b", "example.com", "/@user/a:b"),
        ("https://example.com//127.0.0.1/", "example.com", "//127.0.0.1/"),
        ("https://Bücher.example/", "xn--bcher-kva.example", "/"),
        ("https://日本語.example/", "xn--wgv71a119e.example", "/"),
        ("https://xn--bcher-kva.example/", "xn--bcher-kva.example", "/"),
        ("https://my_bucket.s3.example.com/", "my_bucket.s3.example.com", "/"),
        ("https://1.example.com/", "1.example.com", "/"),
        ("https://a-1.example.com/", "a-1.example.com", "/"),
        ("https://8.8.8.8/", "8.8.8.8", "/"),
        ("https://[2606:4700::1111]:443/", "2606:4700::1111", "/"),
        ("https://[2606:4700:0:0::1111]/", "2606:4700::1111", "/"),
    ],
)
def test_the_parts_of_a_url(url: str, host: str, target: str) -> None:
    parsed = parse_url(url)
    assert (parsed.scheme, parsed.host, parsed.port, parsed.target) == ("https", host, 443, target)
    assert parsed.authority == (f"[{host}]" if ":" in host else host)
    assert (parsed.address is None) == (host not in ("8.8.8.8", "2606:4700::1111"))


def test_http_is_accepted_only_if_it_is_asked_for() -> None:
    with pytest.raises(ImageError) as caught:
        parse_url("http://example.com/")
    assert caught.value.code == "url_refused"
    assert parse_url("http://example.com:80/", allow_http=True).port == 80
    assert parse_url("https://example.com/", allow_http=True).port == 443


REFUSED = [
    *(
        "",
        "example.com",
        "//example.com/",
        "/a.jpg",
        "https:/example.com",
        "https:example.com",
        "https://",
        "https:///a",
    ),
    *("file:///etc/passwd", "FILE:///etc/passwd", "data:image/png;base64,AAAA", "ftp://example.com/a.jpg"),
    *("gopher://example.com/", "dict://example.com/", "ws://example.com/", "jar:https://example.com!/", "s3://a.b/c"),
    *("http://example.com/", "http+unix://example.com/", "javascript:alert(1)", "unix:///var/run/docker.sock"),
    *(
        "https://user@example.com/",
        "https://user:secret@example.com/",
        "https://@example.com/",
        "https://:@example.com/",
    ),
    *("https://example.com@8.8.8.8/", "https://8.8.8.8@example.com/", "https://example.com:443@8.8.8.8/"),
    *(
        "https://example.com\\@8.8.8.8/",
        "https://8.8.8.8\\@example.com/",
        "https:\\\\example.com\\",
        "https://a.b/c\\d",
    ),
    *(
        "https://exa mple.com/",
        " https://example.com/",
        "https://example.com/ ",
        "https://example.com/a b",
        "ht\ntps://a.b/",
    ),
    *(
        "https://example.com/a\r\nHost: 127.0.0.1",
        "https://example.com\t/",
        "https://example.com\x00/",
        "https://a.b/\x7f",
    ),
    *("https://exam\x85ple.com/", "https://a.b/\u2028", "https://a.b/\xa0", "https://a.b/\ud800"),
    *("https://example.com:22/", "https://example.com:80/", "https://example.com:8443/", "https://example.com:0/"),
    *(
        "https://example.com:65536/",
        "https://example.com:/",
        "https://example.com:+443/",
        "https://example.com:443:443/",
    ),
    *("https://example.com:４４３/", "https://example.com:443x/", "https://[2606:4700::1111]443/"),
    *("https://localhost/", "https://LOCALHOST./", "https://metadata/", "https://com/", "https://./", "https://../"),
    *("https://.example.com/", "https://example..com/", "https://example.com../", "https://-a.example.com/"),
    *(
        "https://a-.example.com/",
        "https://exa%6dple.com/",
        "https://%31%32%37.0.0.1/",
        "https://example.com%2f@8.8.8.8/",
    ),
    *(
        "https://exa!mple.com/",
        "https://a,b.com/",
        "https://*.example.com/",
        "https://a..b/",
        f"https://{'a' * 64}.com/",
    ),
    *(f"https://{'a.' * 126}com/", f"https://example.com/{'a' * 5000}"),
    *(
        "https://2130706433/",
        "https://134744072/",
        "https://0x7f000001/",
        "https://017700000001/",
        "https://0x8080808/",
    ),
    *("https://127.1/", "https://127.0.1/", "https://8.8.2056/", "https://0177.0.0.1/", "https://0x7f.0.0.1/"),
    *("https://8.8.8.08/", "https://08.8.8.8/", "https://8.8.8.8./", "https://8.8.8.0x8/", "https://a.b.8/"),
    *(
        "https://256.8.8.8/",
        "https://8.8.8.8.8/",
        "https://1.2.3.4.5.6/",
        "https://8.8.8.-8/",
        "https://0/",
        "https://1/",
    ),
    *(
        "https://８.８.８.８/",
        "https://⑧.⑧.⑧.⑧/",
        "https://8。8。8。8/",
        "https://8．8．8．8/",
        "https://8.8.8.\u00ad8/",
    ),
    *(
        "https://𝟾.𝟾.𝟾.𝟾/",
        "https://localhost\u3002/",
        "https://ｌｏｃａｌｈｏｓｔ/",
        "https://a\u202e.com/",
        "https://\u200b.com/",
    ),
    *(
        "https://exam\u2100ple.com/",
        "https://example\uff0fcom/",
        "https://example.com\uff03.org/",
        "https://xn--.com\u00e9/",
    ),
    *(
        "https://[]/",
        "https://[/",
        "https://]/",
        "https://[::1/",
        "https://::1/",
        "https://[::1]]/",
        "https://[1.2.3.4]/",
    ),
    *("https://[2606:4700::1111%25eth0]/", "https://[2606:4700::1111%1]/", "https://[fe80::1%lo]/", "https://[v1.a]/"),
    *(
        "https://[2606:4700::1111]x/",
        "https://x[2606:4700::1111]/",
        "https://[2606:4700::1111]./",
        "https://[::ffff:1.2.3]/",
    ),
]


@pytest.mark.parametrize("url", REFUSED, ids=lambda url: ascii(url)[:60])
def test_refused_urls(url: str) -> None:
    with pytest.raises(ImageError) as caught:
        parse_url(url)
    assert caught.value.code == "url_refused"


@pytest.mark.parametrize("block", SPECIAL)
def test_special_addresses_are_refused_as_hosts(block: str) -> None:
    for address in first_middle_last(ip_network(block)):
        with pytest.raises(ImageError) as caught:
            parse_url(f"https://[{address}]/" if ":" in address else f"https://{address}/")
        assert caught.value.code == "url_refused"


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("https://example.org/b.jpg", "https://example.org/b.jpg"),
        ("//example.org/b.jpg", "https://example.org/b.jpg"),
        ("/b.jpg", "https://example.com/b.jpg"),
        ("b.jpg?x=1", "https://example.com/folder/b.jpg?x=1"),
        ("../b.jpg", "https://example.com/b.jpg"),
        ("?size=2", "https://example.com/folder/a.jpg?size=2"),
        ("", "https://example.com/folder/a.jpg?size=1"),
        ("@127.0.0.1/", "https://example.com/folder/@127.0.0.1/"),
        (".127.0.0.1/", "https://example.com/folder/.127.0.0.1/"),
        ("file:///etc/passwd", "file:///etc/passwd"),
        ("mailto:a@b", "mailto:a@b"),
    ],
)
def test_joining_a_location(location: str, expected: str) -> None:
    assert parse_url("https://example.com/folder/a.jpg?size=1").join(location) == expected


def test_a_location_that_cannot_be_joined_is_refused() -> None:
    for url, location in (("https://example.com/a.jpg", "/\t/["), ("https://example.com//[", "b.jpg")):
        with pytest.raises(ImageError) as caught:
            parse_url(url).join(location)
        assert caught.value.code == "url_refused"


@pytest.mark.parametrize(
    "location", ["\\\\127.0.0.1/", "/\\127.0.0.1/", "///127.0.0.1/", "https:\\\\127.0.0.1", "https:/127.0.0.1/", "//"]
)
def test_a_location_cannot_smuggle_in_another_host(location: str) -> None:
    start = parse_url("https://example.com/a.jpg")
    with pytest.raises(ImageError) as caught:
        parse_url(start.join(location))
    assert caught.value.code == "url_refused"
