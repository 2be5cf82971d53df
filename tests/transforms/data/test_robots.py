"""robots.txt as RFC 9309 has it: whose rules count, what a file that can't be had means, and that a host is asked once."""

import dataclasses
import random
import socket
import threading
import time
from multiprocessing.pool import ThreadPool

import pytest
from protego import Protego

from tests.servers import free_port
from tests.web import serve
from transforms.data import download, robots
from transforms.data.download import DISALLOWED, OPTED_OUT, DownloadLimits, FetchError, as_download_image, fetch_http
from transforms.data.robots import Robots, Rules, _of_one

LIMITS = DownloadLimits(seconds=5, allow_private_hosts=True)
HURRIED = dataclasses.replace(LIMITS, seconds=0.5)


@pytest.fixture
def web():
    with serve() as server:
        server.answer("/a/b.png", b"picture")
        yield server


def said(url, limits=LIMITS):
    """The file, or why it can't be had."""
    try:
        return fetch_http(url, limits)
    except FetchError as error:
        return str(error)


# -- whose rules, and which -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "allowed"),
    [
        ("", True),
        ("User-agent: *\nDisallow: /", False),
        ("User-agent: *\nDisallow:", True),
        ("\ufeffUser-agent: *\nDisallow: /", False),
        ("USER-AGENT: *\r\nDISALLOW: /a\r\n", False),
        ("User-agent: *\nDisallow: /b", True),
        ("User-agent: otherbot\nDisallow: /", True),
        ("User-agent: Eidetic\nDisallow: /", False),
        # The group with our name counts, and not the one of all.
        ("User-agent: *\nDisallow: /\n\nUser-agent: eidetic\nAllow: /", True),
        ("User-agent: eidetic\nDisallow: /c\n\nUser-agent: *\nDisallow: /", True),
        # A group may have several names, and a name several groups.
        ("User-agent: otherbot\nUser-agent: eidetic\nDisallow: /a", False),
        ("User-agent: eidetic\nDisallow: /c\n\nUser-agent: eidetic\nDisallow: /a", False),
        # The longest rule that fits, wherever it stands; of two as long the one that allows.
        ("User-agent: *\nDisallow: /a/\nAllow: /a/b", True),
        ("User-agent: *\nAllow: /a/\nDisallow: /a/b", False),
        ("User-agent: *\nDisallow: /a\nAllow: /a", True),
        ("User-agent: *\nDisallow: /*.png$", False),
        ("User-agent: *\nDisallow: /*.png$\nAllow: /*/b.png$", True),
        ("User-agent: *\nDisallow: /*.jpg$", True),
        # Who is called Mozilla is a browser, though the User-Agent begins with it.
        ("User-agent: Mozilla\nDisallow: /", True),
    ],
)
def test_whose_rules_count_and_which(web, text, allowed):
    web.answer("/robots.txt", text.encode())
    assert said(web.url + "/a/b.png") == (b"picture" if allowed else DISALLOWED)
    assert web.hits["/a/b.png"] == allowed


def test_a_path_is_compared_as_it_is_sent(web):
    web.answer("/robots.txt", "User-agent: *\nDisallow: /caf%C3%A9\nDisallow: /x?size=1\nDisallow: /ü".encode())
    for path in ("/café.png", "/caf%c3%a9.png", "/x?size=1&a=b", "/%C3%BC", "/ü"):
        assert said(web.url + path) == DISALLOWED
    assert said(web.url + "/x?a=b") == "HTTP 404"


def test_another_name_has_other_rules(web):
    web.answer("/robots.txt", b"User-agent: someone\nDisallow: /")
    assert said(web.url + "/a/b.png") == b"picture"
    assert said(web.url + "/a/b.png", dataclasses.replace(LIMITS, user_agent_token="Someone")) == DISALLOWED


def test_who_does_not_honour_it_does_not_ask(web):
    web.answer("/robots.txt", b"User-agent: *\nDisallow: /")
    assert said(web.url + "/a/b.png", dataclasses.replace(LIMITS, honour_robots=False)) == b"picture"
    assert web.robots == 0


def test_what_robots_allows_the_header_may_still_withhold(web):
    web.answer("/robots.txt", b"User-agent: *\nAllow: /")
    assert said(web.answer("/tagged", b"x", headers=[("X-Robots-Tag", "noai")])) == OPTED_OUT


# -- a file that can't be had -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 429])
def test_where_there_is_none_all_is_allowed(web, status):
    web.answer("/robots.txt", b"User-agent: *\nDisallow: /", status=status)
    assert said(web.url + "/a/b.png") == b"picture"
    assert web.robots == 1


@pytest.mark.parametrize("status", [500, 502, 503])
def test_where_the_server_fails_nothing_is_allowed(web, status):
    web.answer("/robots.txt", status=status)
    assert [said(web.url + "/a/b.png") for _ in range(3)] == [f"robots.txt: HTTP {status}"] * 3
    assert web.robots == download.ROBOTS_TRIES and web.hits["/a/b.png"] == 0


def test_a_server_that_is_busy_is_asked_again(web, monkeypatch):
    def busy_at_first(handler):
        handler.send_response(503 if web.robots == 1 else 404)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    web.pages["/robots.txt"] = busy_at_first
    assert said(web.url + "/a/b.png") == b"picture"
    # And where it stayed so, after a while.
    web.answer("/robots.txt", status=503)
    download.ROBOTS.clear()
    monkeypatch.setattr(robots, "FAULT_SECONDS", 0.0)
    assert said(web.url + "/a/b.png") == "robots.txt: HTTP 503"
    web.answer("/robots.txt", status=404)
    assert said(web.url + "/a/b.png") == b"picture"


def test_a_file_that_ends_early_is_none(web):
    web.raw("/robots.txt", b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nUser-agent: *\n")
    assert said(web.url + "/a/b.png").startswith("robots.txt: broken connection")


def test_a_host_that_is_not_there_is_said_without_robots(monkeypatch):
    port = free_port()
    assert said(f"http://127.0.0.1:{port}/a.png") == "can't connect: Connection refused"

    def nowhere(host, port):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(download, "look_up", nowhere)
    assert said("http://gone.example/a.png") == "the host can't be looked up: Name or service not known"


def test_redirects_are_followed_to_other_hosts_too(web):
    with serve() as other:
        other.answer("/rules", b"User-agent: *\nDisallow: /a")
        web.answer("/robots.txt", status=301, headers=[("Location", f"{other.url}/rules")])
        assert said(web.url + "/a/b.png") == DISALLOWED
        # What another host says of itself is its own.
        assert other.robots == 0


def test_redirects_without_end_are_no_rules(web):
    web.answer("/robots.txt", status=302, headers=[("Location", "/robots.txt")])
    assert said(web.url + "/a/b.png") == b"picture"
    assert web.robots == LIMITS.max_redirects + 1


def test_a_picture_that_leads_elsewhere_asks_there_as_well(web):
    with serve() as other:
        other.answer("/c.png", b"picture")
        other.answer("/robots.txt", b"User-agent: *\nDisallow: /c.png")
        url = web.answer("/there", status=302, headers=[("Location", f"{other.url}/c.png")])
        assert said(url) == DISALLOWED
        assert other.hits["/c.png"] == 0


def test_it_leads_into_no_private_network(web, monkeypatch):
    # The first host counts as public because the test says so; the second is judged as it is.
    monkeypatch.setattr(download, "is_public", lambda ip: ip == "127.0.0.1")
    addresses = {"outside.example": "127.0.0.1", "inside.example": "10.0.0.1"}
    monkeypatch.setattr(
        download, "look_up", lambda host, port: [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (addresses[host], port))]
    )
    web.answer("/robots.txt", status=302, headers=[("Location", f"http://inside.example:{web.port}/robots.txt")])
    limits = DownloadLimits(seconds=5)
    assert "private network" in said(f"http://outside.example:{web.port}/a/b.png", limits)
    assert "private network" in said(f"http://inside.example:{web.port}/a/b.png", limits)
    assert web.hits["/a/b.png"] == 0


# -- what it may cost -------------------------------------------------------------------------------------------------


def test_an_endless_one_is_read_so_far(web):
    rules = b"User-agent: *\nDisallow: /a\n" + b"#" * 1000 + b"\n"
    web.raw("/robots.txt", b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", rules, drip=b"#" * 65536, every=0.001)
    assert said(web.url + "/a/b.png") == DISALLOWED
    late = b"User-agent: *\n" + b"#" * robots.MOST_BYTES + b"\nDisallow: /a\n"
    download.ROBOTS.clear()
    web.answer("/robots.txt", late)
    assert said(web.url + "/a/b.png") == b"picture"


def test_one_that_drips_is_waited_for_once(web):
    web.raw("/robots.txt", b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", drip=b"#\n", every=0.05)
    begun = time.monotonic()
    found = {said(web.url + "/a/b.png", HURRIED) for _ in range(20)}
    # The first waited; the others hear of it.
    assert found == {"robots.txt: took longer than allowed"}
    assert time.monotonic() - begun < 5 and web.robots == 1


def slowly(handler):
    """There is no robots.txt, which it takes a while to say."""
    time.sleep(0.3)
    handler.send_response(404)
    handler.send_header("Content-Length", "0")
    handler.end_headers()


def test_many_threads_ask_once(web):
    web.pages["/robots.txt"] = slowly
    with ThreadPool(32) as pool:
        assert set(pool.map(said, [web.url + "/a/b.png"] * 64)) == {b"picture"}
    assert web.robots == 1


def test_who_waits_for_another_waits_no_longer_than_allowed():
    known, release, asking = Robots(), threading.Event(), threading.Event()

    def ask():
        asking.set()
        release.wait(20)
        return Rules.of("", "eidetic")

    first = threading.Thread(target=lambda: known.rules("host", ask, 20))
    first.start()
    asking.wait(20)
    with pytest.raises(TimeoutError):
        known.rules("host", ask, 0.1)
    release.set()
    first.join(20)
    assert known.rules("host", pytest.fail, 20).allow("/", "eidetic")


def test_an_answer_holds_for_a_day(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(robots.time, "monotonic", lambda: now[0])
    known, asked = Robots(), []

    def ask():
        asked.append(now[0])
        return Rules.of("User-agent: *\nDisallow: /", "eidetic")

    for later in (0, 80_000, 6_000, 10_000):
        now[0] += later
        assert not known.rules("host", ask, 1).allow("/", "eidetic")
    assert asked == [1000.0, 97_000.0]


def test_no_more_is_remembered_than_there_is_room_for(monkeypatch):
    monkeypatch.setattr(robots, "HELD_CHARACTERS", 3_000)
    known, asked = Robots(), []

    def rules(host, size=500):
        def ask():
            asked.append(host)
            return Rules.of("#" * size, "eidetic")

        return known.rules(host, ask, 1)

    for host in "abcab":
        rules(host)
    assert asked == ["a", "b", "c"]
    # What wasn't asked for the longest goes: c, and then a.
    rules("d")
    rules("b")
    rules("c")
    assert asked == ["a", "b", "c", "d", "c"]
    # One that is larger than all of the room is used and not kept.
    assert rules("large", 5_000).allow("/", "eidetic")
    rules("b")
    assert asked[-2:] == ["large", "b"]


def test_many_crawlers_with_many_rules_are_not_their_product():
    text = "".join(f"User-agent: bot{number}\n" for number in range(3_000))
    text += "".join(f"Disallow: /{number}\n" for number in range(30_000)) + "User-agent: *\nDisallow: /a\n"
    begun = time.monotonic()
    rules = Rules.of(text, "eidetic")
    assert not rules.allow("/a", "eidetic") and rules.allow("/1", "eidetic")
    # As it stands it takes minutes, and gigabytes.
    assert time.monotonic() - begun < 20


def test_other_crawlers_names_say_nothing_about_ours():
    """Files made by chance: Protego answers the same with all names in them and with ours alone."""
    chance = random.Random(0)
    names = ["*", "eidetic", "Eidetic", "eid", "tic", "otherbot", "eidetic-images", "ei*", "bot # eidetic", "", "a b", "/"]
    fields = ["User-agent:", "user-agent :", "Useragent", "User agent:", "USER-AGENT ", "  User-agent:\t", "user  agent: "]
    others = [
        "Allow: /",
        "Disallow: /",
        "Disallow: /a",
        "Allow: /a/b",
        "Disallow:",
        "Crawl-delay: 1",
        "# x",
        "",
        "Sitemap: /s",
        "x",
    ]
    different = 0
    for _ in range(3_000):
        lines = [
            chance.choice(fields) + chance.choice(names) if chance.random() < 0.5 else chance.choice(others)
            for _ in range(chance.randint(1, 10))
        ]
        text = chance.choice(["\n", "\r\n", "\r", "\x0b", "\u2028"]).join(lines)
        whole, ours = Protego.parse(text), Protego.parse(_of_one(text, "eidetic"))
        for path in ("/", "/a", "/a/b", "/c"):
            assert whole.can_fetch(path, "eidetic") == ours.can_fetch(path, "eidetic"), text
            different += not whole.can_fetch(path, "eidetic")
    assert different > 500


def test_a_refusal_is_final_and_a_fault_is_not(web):
    download_image = as_download_image(fetch_http, LIMITS)
    web.answer("/robots.txt", b"User-agent: *\nDisallow: /a")
    assert [download_image((1, web.url + "/a/b.png"))[2] for _ in range(3)] == [DISALLOWED] * 3
    download.ROBOTS.clear()
    web.answer("/robots.txt", status=500)
    assert download_image((2, web.url + "/c"))[2] == "robots.txt: HTTP 500"
    download.ROBOTS.clear()
    web.answer("/robots.txt", status=404)
    assert download_image((2, web.answer("/c", b"x")))[2] is None
    assert download_image((1, web.url + "/a/b.png"))[2] == DISALLOWED


@pytest.mark.parametrize("end", ["\r", "\n", "\r\n", "\x0b", "\u2028"])
def test_lines_may_end_in_any_way(end):
    rules = Rules.of(end.join(["User-agent: eidetic", "Disallow: /"]), "eidetic")
    assert not rules.allow("/a.png", "eidetic")


def test_a_path_that_begins_with_two_slashes_is_a_path():
    path = "//wp-content/uploads/x.jpg"
    for rule, allowed in (("//wp-content/", False), ("/*/uploads/", False), ("/uploads/", True)):
        assert Rules.of(f"User-agent: *\nDisallow: {rule}", "eidetic").allow(path, "eidetic") is allowed, rule


def test_a_retry_with_no_time_left_is_not_what_a_host_is_judged_by(web):
    """The picture's own time is nearly over; its host's robots.txt has the time of --timeout all the same."""

    web.pages["/robots.txt"] = slowly
    url = web.answer("/a.png", b"picture")
    hurried = dataclasses.replace(LIMITS, seconds=0.1, robots_seconds=5.0)
    assert said(url, hurried) == "took longer than allowed"
    assert fetch_http(url, LIMITS) == b"picture"


def test_a_fault_that_stays_is_not_tried_again(web):
    """An address that nobody may ask is as final for robots.txt as for the picture."""
    closed = dataclasses.replace(LIMITS, allow_private_hosts=False)
    with pytest.raises(download.FetchError) as raised:
        fetch_http(web.url + "/a.png", closed)
    assert not isinstance(raised.value, download.PassingFault)
