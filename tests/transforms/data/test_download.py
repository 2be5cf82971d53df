"""One picture from a stranger: every limit holds, only the open internet is asked, and only FetchError comes out."""

import dataclasses
import datetime
import gzip
import http.server
import io
import os
import select
import signal
import socket
import ssl
import threading
import time
from multiprocessing.pool import ThreadPool

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from PIL import Image

from tests.servers import free_port
from tests.web import picture, serve
from transforms.data import download
from transforms.data.download import (
    OPTED_OUT,
    DownloadLimits,
    FetchError,
    as_download_image,
    fetch_http,
    is_public,
)

LIMITS = DownloadLimits(seconds=5, allow_private_hosts=True)
HURRIED = DownloadLimits(seconds=0.5, allow_private_hosts=True)
PATIENCE = 6.0
"""Seconds after which a fetch that was given 0.5 has plainly not been cut off; the rest is for a busy machine."""


@pytest.fixture(scope="module")
def web():
    with serve() as server:
        yield server


@pytest.fixture(autouse=True)
def no_robots_known():
    """A host that another test couldn't reach is asked again."""
    download.ROBOTS.clear()


def reason(url, limits=LIMITS):
    with pytest.raises(FetchError) as caught:
        fetch_http(url, limits)
    return str(caught.value)


def address(ip, port):
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    return [(family, socket.SOCK_STREAM, 6, "", (ip, port))]


def plant(monkeypatch, answers):
    """Host → addresses, in place of the name server. Returns the hosts that were asked for."""
    asked = []

    def look_up(host, port):
        asked.append(host)
        return [entry for ip in answers[host] for entry in address(ip, port)]

    monkeypatch.setattr(download, "look_up", look_up)
    return asked


# -- what comes through --------------------------------------------------------------------------------------------


def test_the_file_as_it_was_sent(web):
    content = picture(1)
    assert fetch_http(web.answer("/a.png", content, headers=[("Content-Type", "image/png")]), LIMITS) == content
    assert fetch_http(web.answer("/b.png", content, length=False), LIMITS) == content
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n" % len(content) + content + b"\r\n0\r\n\r\n"
    assert fetch_http(web.raw("/c.png", chunked), LIMITS) == content


def test_who_asks_is_said(web):
    fetch_http(web.answer("/who.png", b"x"), DownloadLimits(allow_private_hosts=True, user_agent_token="tester"))
    assert any("tester" in agent for agent in web.agents)


def test_a_file_packed_against_our_wish_is_whole_though_shorter_than_its_length(web):
    # Random pixels grow when packed, so the file has fewer bytes than Content-Length says.
    content = picture(2)
    packed = gzip.compress(content)
    assert len(packed) > len(content)
    assert fetch_http(web.answer("/packed.png", packed, headers=[("Content-Encoding", "gzip")]), LIMITS) == content


@pytest.mark.parametrize(
    ("written", "sent"),
    [
        ("/a b.png", "/a%20b.png"),
        ("/café.png", "/caf%C3%A9.png"),
        ("/caf%C3%A9.png", "/caf%C3%A9.png"),
        ("/a.png?title=a b&é", "/a.png?title=a%20b&%C3%A9"),
        ("/a.png#part", "/a.png"),
        ("?x=1", "/?x=1"),
    ],
)
def test_a_path_is_sent_as_browsers_send_it(web, written, sent):
    web.answer(sent, b"found")
    assert fetch_http(web.url + written, LIMITS) == b"found"


def test_a_redirect_is_followed_relative_and_beyond_ascii(web):
    web.answer("/to/caf%C3%A9.png", b"found")
    # Servers send raw UTF-8 in Location, though they may not; http.client hands it on as Latin-1.
    url = web.raw("/from", b"HTTP/1.1 302 Found\r\nLocation: to/caf\xc3\xa9.png\r\nContent-Length: 0\r\n\r\n")
    assert fetch_http(url, LIMITS) == b"found"
    spaced = web.answer("/spaced", status=301, headers=[("Location", "/with a space.png")])
    web.answer("/with%20a%20space.png", b"also found")
    assert fetch_http(spaced, LIMITS) == b"also found"


# -- bytes ---------------------------------------------------------------------------------------------------------


def test_too_many_bytes_are_refused_by_the_length_they_claim(web):
    limits = DownloadLimits(seconds=5, max_bytes=1000, allow_private_hosts=True)
    # The body never comes: it is refused before it is read.
    url = web.silence("/claims", b"HTTP/1.1 200 OK\r\nContent-Length: 1001\r\n\r\n")
    assert reason(url, limits) == "more than 1000 bytes"


def test_too_many_bytes_are_refused_without_a_length(web):
    limits = DownloadLimits(seconds=5, max_bytes=1000, allow_private_hosts=True)
    endless = web.raw("/endless", b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", drip=b"x" * 400, every=0.01)
    assert reason(endless, limits) == "more than 1000 bytes"
    chunk = b"190\r\n" + b"x" * 400 + b"\r\n"
    chunked = web.raw("/chunks", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", drip=chunk, every=0.01)
    assert reason(chunked, limits) == "more than 1000 bytes"


def test_exactly_as_many_bytes_as_allowed_pass(web):
    limits = DownloadLimits(seconds=5, max_bytes=1000, allow_private_hosts=True)
    assert len(fetch_http(web.answer("/exact", b"x" * 1000), limits)) == 1000
    assert len(fetch_http(web.answer("/exact2", b"x" * 1000, length=False), limits)) == 1000


def test_a_packed_bomb_stops_at_the_limit(web):
    bomb = gzip.compress(bytes(50 << 20))
    url = web.answer("/bomb", bomb, headers=[("Content-Encoding", "gzip")])
    assert "bytes" in reason(url, DownloadLimits(seconds=5, max_bytes=1 << 20, allow_private_hosts=True))


def test_a_truncated_file_is_no_file(web):
    cut_short = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nonly this"
    assert "9" in reason(web.raw("/short", cut_short))
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n64\r\nonly this"
    assert "broken" in reason(web.raw("/short-chunk", chunked))


# -- time ----------------------------------------------------------------------------------------------------------

DRIPS = {
    "body": b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n",
    "body without a length": b"HTTP/1.0 200 OK\r\n\r\n",
    "status": b"HTTP/1.1 200 ",
    "header": b"HTTP/1.1 200 OK\r\nX-Long: ",
    # A length of a chunk may have an extension of any size; the connection that will close has let go of its socket.
    "chunk": b"HTTP/1.1 200 OK\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n5;",
    "trailer": b"HTTP/1.1 200 OK\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nA: ",
}


@pytest.mark.parametrize("where", DRIPS)
@pytest.mark.parametrize("dripping", [True, False], ids=["drip", "silence"])
def test_the_time_is_a_total_wherever_the_server_dawdles(web, where, dripping):
    path = f"/{where.replace(' ', '-')}-{dripping}"
    url = web.raw(path, DRIPS[where], drip=b"a") if dripping else web.silence(path, DRIPS[where])
    begun = time.monotonic()
    assert reason(url, HURRIED) == "took longer than allowed"
    assert time.monotonic() - begun < PATIENCE


def test_the_time_is_a_total_over_endless_interim_answers(web):
    url = web.raw("/continue", b"", drip=b"HTTP/1.1 100 Continue\r\n\r\n", every=0.01)
    begun = time.monotonic()
    assert reason(url, HURRIED) == "took longer than allowed"
    assert time.monotonic() - begun < PATIENCE


def test_the_time_is_a_total_over_redirects(web):
    def slowly(handler):
        time.sleep(0.2)
        handler.send_response(302)
        handler.send_header("Location", handler.path)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    web.pages["/slow-loop"] = slowly
    begun = time.monotonic()
    assert reason(web.url + "/slow-loop", HURRIED) == "took longer than allowed"
    assert time.monotonic() - begun < PATIENCE


def test_a_name_server_that_dawdles_is_not_waited_for(monkeypatch):
    release = threading.Event()
    monkeypatch.setattr(download, "look_up", lambda host, port: release.wait(20) and [])
    begun = time.monotonic()
    assert reason("http://slow.example/a.png", HURRIED) == "took longer than allowed"
    assert time.monotonic() - begun < PATIENCE
    release.set()


def test_a_handshake_that_never_ends():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        begun = time.monotonic()
        assert reason(f"https://127.0.0.1:{silent.getsockname()[1]}/", HURRIED) == "took longer than allowed"
        assert time.monotonic() - begun < PATIENCE


# -- https ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def secure(tmp_path_factory):
    """(port, file of its authority) of a server whose certificate is for secure.example."""
    now = datetime.datetime.now(datetime.UTC)
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "secure.example")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("secure.example")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    folder = tmp_path_factory.mktemp("tls")
    authority = folder / "certificate.pem"
    authority.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "key.pem").write_bytes(private)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority, folder / "key.pem")

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"found")

        def log_message(self, *_):
            pass

    class Server(http.server.ThreadingHTTPServer):
        def handle_error(self, *_):  # clients that turn away are what the tests are about
            pass

    server = Server(("127.0.0.1", 0), Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_address[1], authority
    server.shutdown()
    server.server_close()


def test_https_is_fetched_where_the_certificate_is_good(secure, monkeypatch):
    port, authority = secure
    plant(monkeypatch, {"secure.example": ["127.0.0.1"], "other.example": ["127.0.0.1"]})
    assert "certificate verify failed" in reason(f"https://secure.example:{port}/a.png")
    trusting = download.tls_context.__wrapped__()
    trusting.load_verify_locations(authority)
    monkeypatch.setattr(download, "tls_context", lambda: trusting)
    download.ROBOTS.clear()
    assert fetch_http(f"https://secure.example:{port}/a.png", LIMITS) == b"found"
    # The certificate of another host is no certificate of this one, whatever address it has.
    assert "certificate verify failed" in reason(f"https://other.example:{port}/a.png")


def test_the_authorities_are_read_once():
    assert download.tls_context() is download.tls_context()


# -- redirects, refusals, faults -----------------------------------------------------------------------------------


def test_redirects_that_go_round_end(web):
    web.answer("/ping", status=302, headers=[("Location", "/pong")])
    web.answer("/pong", status=307, headers=[("Location", "/ping")])
    before = web.hits["/ping"] + web.hits["/pong"]
    assert reason(web.url + "/ping") == "more than 5 redirects"
    assert web.hits["/ping"] + web.hits["/pong"] - before == 6


def test_a_redirect_to_another_scheme_is_refused(web):
    for number, target in enumerate(("file:///etc/passwd", "ftp://127.0.0.1/x", "data:image/png;base64,AAAA")):
        url = web.answer(f"/scheme{number}", status=302, headers=[("Location", target)])
        assert reason(url).startswith("only http and https")


def test_a_redirect_to_what_is_no_url(web):
    for number, target in enumerate(("http://[::1", "http://127.0.0.1:99999/", "http://a b/", "http://[zz]/")):
        url = web.answer(f"/broken{number}", status=302, headers=[("Location", target)])
        assert reason(url)


@pytest.mark.parametrize(
    "url",
    [
        None,
        "",
        "nonsense",
        "/bare/path.png",
        "C:\\pictures\\a.png",
        "file:///etc/passwd",
        "ftp://127.0.0.1/a.png",
        "data:image/png;base64,AAAA",
        "gopher://127.0.0.1/",
        "javascript:alert(1)",
        "http://",
        "http:///a.png",
        "https://:80/a.png",
        "http://127.0.0.1:99999/a.png",
        "http://127.0.0.1:-1/a.png",
        "http://127.0.0.1:port/a.png",
        "http://[::1/a.png",
        "http://[zz]/a.png",
        "http://[v1.x]/a.png",
        "http://℀.example/a.png",
        "http://a b.example/a.png",
        "http://a\x00b.example/a.png",
        "http://a\x7fb.example/a.png",
        "http://a..b/a.png",
        "http://" + "a" * 300 + ".example/a.png",
    ],
)
def test_what_is_no_url_of_the_web_is_refused_without_a_connection(url, monkeypatch):
    def no_look_up(host, port):
        host.encode("idna")  # as getaddrinfo does before it asks
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(download, "look_up", no_look_up)
    assert "\n" not in reason(url)


def test_statuses_and_web_pages_are_told(web):
    assert reason(web.url + "/nowhere") == "HTTP 404"
    assert reason(web.answer("/gone", status=410)) == "HTTP 410"
    assert reason(web.answer("/empty-redirect", status=302)) == "HTTP 302"
    page = web.answer("/page.png", b"<html>", headers=[("Content-Type", "Text/HTML; charset=utf-8")])
    assert reason(page) == "not an image: text/html"
    assert reason(web.answer("/part.png", picture(), status=206)) == "HTTP 206"
    unknown = web.answer("/unknown.png", b"x", headers=[("Content-Type", "application/octet-stream")])
    assert fetch_http(unknown, LIMITS) == b"x"


@pytest.mark.parametrize("kind", ["text/plain", "text/html; charset=utf-8", "application/json", "video/mp4", "nonsense", ""])
@pytest.mark.parametrize("status", [200, 203])
def test_whether_it_is_a_picture_the_bytes_decide(web, kind, status):
    for form in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM"):
        sink = io.BytesIO()
        Image.new("RGB", (8, 8)).save(sink, form)
        content = sink.getvalue()
        assert (
            fetch_http(web.answer("/a.png", content, status, [("Content-Type", kind)], length=form != "GIF"), LIMITS) == content
        )


def test_a_film_is_not_read_to_its_end(web):
    head = b"HTTP/1.1 200 OK\r\nContent-Type: video/mp4\r\nContent-Length: 30000000\r\n\r\n"
    # The body never comes: what it is, is known by its first bytes.
    assert reason(web.silence("/film.png", head, b"\0\0\0 ftypisom\0\0\2\0isomiso2avc1mp41")) == "not an image: video/mp4"
    assert reason(web.answer("/short.png", b"x", headers=[("Content-Type", "text/plain")])) == "not an image: text/plain"


def test_what_is_not_http_at_all(web):
    assert "broken" in reason(web.raw("/ssh", b"SSH-2.0-OpenSSH_9.6\r\n"))
    assert "broken" in reason(web.raw("/nothing"))
    assert "can't connect" in reason(f"http://127.0.0.1:{free_port()}/")
    many = b"HTTP/1.1 200 OK\r\n" + b"".join(b"X-%d: x\r\n" % number for number in range(500)) + b"\r\n"
    assert "broken" in reason(web.raw("/many", many))


def test_reasons_are_the_same_each_time(web):
    # They are rows of a table that must not change from run to run: no object's address may be in them.
    for url in (web.raw("/nothing-again"), f"http://127.0.0.1:{free_port()}/", web.raw("/cut", b"HTTP/1.1 2")):
        said = reason(url)
        assert said == reason(url)
        assert "0x" not in said


# -- opting out ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tags", "opted_out"),
    [
        (["noai"], True),
        (["NoImageAI"], True),
        (["nofollow, noindex"], True),
        (["eidetic: noai"], True),
        (["EIDETIC: nofollow, noai"], True),
        (["nofollow", "noai"], True),
        (["otherbot: noai"], False),
        (["otherbot: noai", "eidetic: nofollow"], False),
        (["nofollow"], False),
        ([], False),
    ],
)
def test_opting_out(web, tags, opted_out):
    path = "/tags-" + "-".join(tags).replace(" ", "").replace(",", "").replace(":", "")
    url = web.answer(path, b"x", headers=[("X-Robots-Tag", tag) for tag in tags])
    if opted_out:
        assert reason(url) == OPTED_OUT
        heedless = DownloadLimits(seconds=5, allow_private_hosts=True, opt_out_directives=())
        assert fetch_http(url, heedless) == b"x"
    else:
        assert fetch_http(url, LIMITS) == b"x"


def test_a_redirect_can_opt_out_too(web):
    web.answer("/beyond", b"x")
    url = web.answer("/tagged", status=302, headers=[("Location", "/beyond"), ("X-Robots-Tag", "noai")])
    assert reason(url) == OPTED_OUT
    assert web.hits["/beyond"] == 0


# -- private networks ----------------------------------------------------------------------------------------------

PRIVATE = [
    "127.0.0.1",
    "127.8.8.8",
    "10.0.0.1",
    "172.16.0.1",
    "192.168.1.1",
    "169.254.169.254",
    "100.64.0.1",
    "0.0.0.0",
    "198.18.0.1",
    "224.0.0.1",
    "255.255.255.255",
    "::1",
    "::",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "::127.0.0.1",
    "fe80::1",
    "fe80::1%eth0",
    "fd00::1",
    "fec0::1",
    "ff02::1",
    "2002:7f00:1::",
    "64:ff9b::7f00:1",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::1",
]


@pytest.mark.parametrize("ip", PRIVATE)
def test_private_addresses_are_refused(ip, monkeypatch):
    assert not is_public(ip)
    plant(monkeypatch, {"inside.example": [ip]})
    assert "private network" in reason("http://inside.example/a.png", DownloadLimits(seconds=5))


@pytest.mark.parametrize("ip", ["8.8.8.8", "93.184.216.34", "2606:4700:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_the_open_internet_is_public(ip):
    assert is_public(ip)


LOOPBACKS = [
    "127.0.0.1", "localhost", "LOCALHOST", "localhost.", "2130706433", "0x7f000001", "0x7f.1", "0177.0.0.1", "017700000001",
    "127.1", "127.0.1", "127.0.0.1.", "0", "0.0.0.0", "[::1]", "[::]", "[0:0:0:0:0:0:0:1]", "[::ffff:127.0.0.1]",
    "[::ffff:7f00:1]", "[0:0:0:0:0:ffff:127.0.0.1]", "[::127.0.0.1]", "[64:ff9b::127.0.0.1]", "[2002:7f00:1::]", "[::1%25lo]",
    "①②⑦.⓪.⓪.①", "127。0。0。1", "user@127.0.0.1", "example.org@127.0.0.1", "127.0.0.1#@example.org", "%31%32%37.0.0.1",
]  # fmt: skip


@pytest.mark.parametrize("host", LOOPBACKS)
def test_loopback_is_refused_however_it_is_written(web, host):
    before = web.hits["/a.png"]
    assert reason(f"http://{host}:{web.port}/a.png", DownloadLimits(seconds=5))
    assert web.hits["/a.png"] == before


def test_a_redirect_into_a_private_network_is_refused(web, monkeypatch):
    # The first host counts as public because the test says so; the second is judged as it is.
    monkeypatch.setattr(download, "is_public", lambda ip: ip == "127.0.0.1")
    asked = plant(monkeypatch, {"outside.example": ["127.0.0.1"], "inside.example": ["10.0.0.1"]})
    target = f"http://inside.example:{web.port}/secret"
    web.answer("/inwards", status=302, headers=[("Location", target)])
    assert "private network" in reason(f"http://outside.example:{web.port}/inwards", DownloadLimits(seconds=5))
    assert list(dict.fromkeys(asked)) == ["outside.example", "inside.example"]


def test_the_address_that_was_checked_is_the_one_connected_to(web, monkeypatch):
    # A name server that answers differently the second time gains nothing: it is asked once for each connection, of which one
    # is for robots.txt.
    asked = plant(monkeypatch, {"rebinding.example": ["127.0.0.1"]})
    web.answer("/once", b"x")
    assert fetch_http(f"http://rebinding.example:{web.port}/once", LIMITS) == b"x"
    assert asked == ["rebinding.example"] * 2


def test_an_address_that_does_not_answer_gives_way_to_the_next(web, monkeypatch):
    plant(monkeypatch, {"two.example": ["::1", "127.0.0.1"]})
    web.answer("/two", b"x")
    assert fetch_http(f"http://two.example:{web.port}/two", LIMITS) == b"x"


def test_a_machine_without_ipv6(web, monkeypatch):
    plant(monkeypatch, {"two.example": ["::1", "127.0.0.1"], "six.example": ["::1"]})
    made = socket.socket

    def without_ipv6(family=socket.AF_INET, *rest, **options):
        if family == socket.AF_INET6:
            raise OSError(97, "Address family not supported by protocol")
        return made(family, *rest, **options)

    monkeypatch.setattr(download.socket, "socket", without_ipv6)
    web.answer("/four", b"x")
    assert fetch_http(f"http://two.example:{web.port}/four", LIMITS) == b"x"
    assert reason("http://six.example/a.png") == "can't connect: Address family not supported by protocol"


# -- as img2dataset calls it ---------------------------------------------------------------------------------------


def test_the_form_that_img2dataset_expects(web):
    download_image = as_download_image(fetch_http, LIMITS)
    key, stream, error = download_image((7, web.answer("/seven.png", picture(7))), 10, "eidetic", None)
    assert (key, stream.read(), error) == (7, picture(7), None)
    assert download_image((8, web.url + "/eight.png"), timeout=10) == (8, None, "HTTP 404")
    # What is left of its seconds is for the decoder.
    assert 0 < stream.seconds < LIMITS.seconds


def test_further_tries_share_the_time_of_one(web):
    download_image = as_download_image(fetch_http, HURRIED)
    url = web.silence("/tries", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n")
    begun = time.monotonic()
    assert [download_image((1, url))[2] for _ in range(20)] == ["took longer than allowed"] * 20
    assert time.monotonic() - begun < PATIENCE
    # A connection that breaks at once is tried again, as long as there is time.
    broken = web.raw("/broken-each-time")
    while (said := download_image((2, broken))[2]).startswith("broken"):
        time.sleep(0.05)
        assert time.monotonic() - begun < 2 * PATIENCE
    assert said == "took longer than allowed"
    assert web.hits["/broken-each-time"] > 1


def test_only_faults_that_may_pass_are_tried_again(web):
    download_image = as_download_image(fetch_http, LIMITS)
    web.answer("/no-ai", b"x", headers=[("X-Robots-Tag", "noai")])
    web.answer("/down", status=503)
    for key, (path, asked) in enumerate({"/no-ai": 1, "/missing": 1, "/down": 3}.items()):
        assert len({download_image((key, web.url + path))[1:] for _ in range(3)}) == 1
        assert web.hits[path] == asked


def test_a_reason_is_one_short_line_whatever_the_server_says(web):
    download_image = as_download_image(fetch_http, LIMITS)
    rude = web.raw("/rude", b"HTTP/1.1 BAD " + b"\xff\x0c" * 20_000 + b"\r\n\r\n")
    long = web.answer("/long-type", b"x", headers=[("Content-Type", "text/" + "z" * 50_000)])
    for key, url in enumerate((rude, long)):
        said = download_image((key, url))[2]
        assert 0 < len(said) <= download.MAX_REASON
        assert said.splitlines() == [said]


def test_what_nobody_thought_of_is_the_fault_of_one_row():
    def broken(url, limits):
        raise ZeroDivisionError(f"at {url}\n\ud800")

    assert as_download_image(broken, LIMITS)((3, "u")) == (3, None, "unexpected ZeroDivisionError: at u ?")


# -- how much is held ----------------------------------------------------------------------------------------------


@pytest.fixture
def held(monkeypatch):
    """Says how many bytes of files are on their way or open, and the most there ever were; the limit is 80,000 bytes."""
    monkeypatch.setattr(download, "HELD_BYTES", 80_000)
    counts, lock = {"now": 0, "most": 0, "asked": 0}, threading.Lock()

    def hold(size):
        with lock:
            counts["now"] += size
            counts["most"] = max(counts["most"], counts["now"])

    class Counted(download.Fetched):
        def __init__(self, content, *rest):
            super().__init__(content, *rest)
            self.size = len(content)
            hold(self.size)

        def close(self):
            if not self.closed:
                hold(-self.size)
            super().close()

    def fetch(url, limits):
        size, says = int(url.split()[0]), "silent" not in url
        counts["asked"] += 1
        if says and size > limits.max_bytes:
            raise download.TooLarge(limits.max_bytes, size)
        hold(min(size, limits.max_bytes))
        time.sleep(0.01)
        hold(-min(size, limits.max_bytes))
        if size > limits.max_bytes:
            raise download.TooLarge(limits.max_bytes)
        return bytes(size)

    monkeypatch.setattr(download, "Fetched", Counted)
    return counts, fetch


@pytest.mark.parametrize("said", ["", " silent"])
def test_files_that_wait_to_be_decoded_are_bounded_together(held, said):
    """As img2dataset does it: threads that download, one that takes what they bring, and slowly; two files a thread at most."""
    counts, fetch = held
    limits = dataclasses.replace(LIMITS, max_bytes=30_000)
    download_image = as_download_image(fetch, limits, threads=4)
    sizes = [30_000, 20_000, 4_000, 25_000, 30_000, 5_001, 100, 30_000] * 4
    ready = threading.Semaphore(8)

    def rows():
        for key, size in enumerate(sizes):
            ready.acquire()
            yield key, f"{size}{said}"

    with ThreadPool(4) as pool:
        for key, stream, error in pool.imap_unordered(download_image, rows()):
            assert error is None and len(stream.getvalue()) == sizes[key]
            time.sleep(0.005)
            stream.close()
            ready.release()
    assert 30_000 < counts["most"] <= download.HELD_BYTES and counts["now"] == 0
    # A larger one is asked for once more, or twice where nobody says how large it is.
    assert counts["asked"] <= len(sizes) + sum(size > 5_000 for size in sizes)


def test_what_needs_no_more_than_its_share_never_waits_and_is_asked_for_once(held):
    counts, fetch = held
    download_image = as_download_image(fetch, LIMITS, threads=4)
    large = [download_image((key, "20000"))[1] for key in range(2)]  # nothing more fits beside these
    asked = counts["asked"]
    small = [download_image((key, "5000"))[1] for key in range(2, 8)]
    assert counts["asked"] == asked + 6 and counts["most"] <= download.HELD_BYTES
    assert all(len(stream.getvalue()) == 5000 for stream in small) and all(large)


def test_waiting_for_room_is_not_the_servers_time(held):
    _, fetch = held
    download_image = as_download_image(fetch, dataclasses.replace(LIMITS, seconds=0.5), threads=4)
    first = download_image((0, "40000"))[1]
    threading.Timer(1.0, first.close).start()
    begun = time.monotonic()
    _, stream, error = download_image((1, "40000"))
    assert time.monotonic() - begun > 0.9 and error is None and 0.2 < stream.seconds <= 0.5


def test_room_is_given_back_whatever_happens(held):
    _, fetch = held
    times = iter([None, download.FetchError("HTTP 404"), ZeroDivisionError("x"), None])

    def failing(url, limits):
        if limits.max_bytes > 5_000 and (fault := next(times)):
            raise fault
        return fetch(url, limits)

    download_image = as_download_image(failing, LIMITS, threads=4)
    assert download_image((0, "40000"))[1].size == 40_000  # forgotten, and never closed
    assert [download_image((key, "40000"))[2] for key in (1, 2)] == ["HTTP 404", "unexpected ZeroDivisionError: x"]
    assert download_image((3, "40000"))[2] is None


def test_one_that_is_larger_than_the_room_has_it_alone_and_the_limit_is_the_one_that_was_given(held):
    _, fetch = held
    download_image = as_download_image(fetch, dataclasses.replace(LIMITS, max_bytes=90_000), threads=4)
    for key, said in enumerate(("", " silent")):
        assert download_image((key, f"90000{said}"))[1].size == 90_000
        assert download_image((key + 2, f"90001{said}"))[2] == "more than 90000 bytes"


def test_a_server_is_asked_for_a_large_file_as_often_as_it_must(web, monkeypatch):
    monkeypatch.setattr(download, "HELD_BYTES", 80_000)
    download_image = as_download_image(fetch_http, LIMITS, threads=4)
    content = picture(3).ljust(20_000, b"x")
    assert download_image((1, web.answer("/large.png", content)))[1].read() == content
    assert download_image((2, web.answer("/small.png", picture(3))))[1].read() == picture(3)
    assert (web.hits["/large.png"], web.hits["/small.png"]) == (2, 1)


# -- alarms ------------------------------------------------------------------------------------------------------------


def test_alarms_ring_at_their_times_and_not_where_they_are_cancelled():
    alarms, rung, done = download.Alarms(), [], threading.Event()
    begun = time.monotonic()
    alarms.at(begun + 0.6, done.set)
    alarms.at(begun + 0.4, lambda: rung.append("later"))
    cancelled = alarms.at(begun + 0.1, lambda: rung.append("never"))
    alarms.at(begun + 0.2, lambda: rung.append("sooner"))  # than the one that is waited for
    alarms.cancel(cancelled)
    assert done.wait(10) and time.monotonic() - begun >= 0.6
    assert rung == ["sooner", "later"]
    alarms.cancel(cancelled)  # long over: nothing happens
    past = threading.Event()
    alarms.at(begun, past.set)
    assert past.wait(10)
    threads = threading.active_count()
    for _ in range(5000):
        alarms.cancel(alarms.at(time.monotonic() + 3600, done.clear))
    assert threading.active_count() == threads and done.is_set()
    # What was cancelled isn't kept until its time.
    assert len(alarms._waiting) <= 1001


def test_an_alarm_that_fails_keeps_no_other_from_ringing(caplog):
    alarms, rung = download.Alarms(), threading.Event()

    def fails():
        raise ValueError("a socket that nobody has thought of")

    alarms.at(time.monotonic(), fails)
    alarms.at(time.monotonic() + 0.1, rung.set)
    assert rung.wait(10)
    assert "a socket that nobody has thought of" in caplog.text


def test_alarms_ring_in_a_fork_too():
    alarms = download.Alarms()
    alarms.at(time.monotonic() + 60, lambda: None)  # its thread is the parent's
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        alarms.at(time.monotonic() + 0.1, lambda: os.write(writer, b"rung"))
        time.sleep(20)
        os._exit(1)
    try:
        assert select.select([reader], [], [], 10)[0] and os.read(reader, 4) == b"rung"
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
