"""Uses the chat page in a headless Chromium as a person would. Prints "ok …" per check.

Where it prints "restart", the test kills the node and starts it again on the same port, then writes a line to standard input.
"""

import hashlib
import sys

from playwright.sync_api import expect, sync_playwright

URL = sys.argv[1]
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]
PATIENCE_MS = 60_000
HOSTILE = """<script>window.hacked = 1</script><img src=x onerror="window.hacked = 1"> [bad](javascript:alert(1))
[good](https://example.org) **bold** `x < y`

```rust
fn main() {}
```
"""


def ok(what):
    print("ok", what, flush=True)


def mark(message):
    return hashlib.sha256(message.encode()).hexdigest()[:16]


def say(page, text):
    page.fill("#text", text)
    page.press("#text", "Enter")


def done(page, count):
    """Waits until `count` replies are complete, and returns the last one's text."""
    replies = page.locator(".message.assistant:not(.working):has(.actions)")
    expect(replies).to_have_count(count)
    return replies.last.locator(".body").inner_text()


def streaming(page):
    say(page, "first question")
    body = page.locator(".message.assistant .body")
    expect(body).to_contain_text(mark("first question"))
    early = len(body.inner_text())
    assert page.locator(".message.working").count() == 1, "the reply is still growing"
    text = done(page, 1)
    assert len(text) > early, "the reply did not stream"
    ok("an answer streams")
    return text


def history(page, first):
    page.reload()
    assert done(page, 1) == first
    expect(page.locator(".message.user")).to_have_text(["You:first question"])
    expect(page.locator("#sessions a")).to_have_text(["first question"])
    ok("a reload shows the history")


def stopping(page):
    say(page, "second question")
    expect(page.locator(".message.working .body")).to_contain_text(mark("second question"))
    page.click("#stop")
    stopped = done(page, 2)
    expect(page.locator(".note")).to_have_text("Stopped.")
    ok("a running answer can be stopped")
    return stopped


def regenerating(page, stopped):
    page.click(".regenerate")
    expect(page.locator(".message.working")).to_have_count(1)
    fuller = done(page, 2)
    assert fuller.startswith(stopped.rstrip()) and len(fuller) > len(stopped), (stopped, fuller)
    page.reload()
    assert done(page, 2) == fuller, "the record holds the new answer in place of the old one"
    ok("an answer can be made anew")


def restarting(page):
    say(page, "third question")
    expect(page.locator(".message.working .body")).to_contain_text(mark("third question"))
    print("restart", flush=True)
    sys.stdin.readline()
    text = done(page, 3)
    assert text.startswith(mark("third question")), text
    page.reload()
    recorded = done(page, 3)
    assert recorded == text, f"shown {text!r}, recorded {recorded!r}"
    ok("an answer goes on after the node was killed")


def markdown(page):
    page.evaluate(
        """async (text) => {
          const { render } = await import("/markdown.js");
          const place = document.createElement("div");
          place.id = "hostile";
          document.body.append(place);
          render(place, text);
        }""",
        HOSTILE,
    )
    place = page.locator("#hostile")
    assert place.locator("script, img, [onerror]").count() == 0
    assert [a.get_attribute("href") for a in place.locator("a").all()] in (["https://example.org"], [None, "https://example.org"])
    assert place.locator("pre .copy").count() == 1 and place.locator("strong").inner_text() == "bold"
    assert page.evaluate("window.hacked") is None
    page.evaluate("document.getElementById('hostile').remove()")
    ok("Markdown is rendered and harmless")


def phone(browser, url):
    page = browser.new_page(viewport={"width": 375, "height": 700}, color_scheme="dark", has_touch=True)
    page.goto(url)
    done(page, 3)
    wide = page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth")
    assert not wide, "the page is wider than the phone"
    page.click("#open-sidebar")
    expect(page.locator("#sessions a")).to_be_in_viewport()
    page.close()
    ok("it fits a phone")


def several(page):
    page.click("#new-chat")
    say(page, "another chat")
    done(page, 1)
    expect(page.locator("#sessions a")).to_have_text(["another chat", "first question"])
    page.click("#sessions a >> nth=1")
    done(page, 3)
    page.on("dialog", lambda dialog: dialog.accept())
    page.hover("#sessions li >> nth=0")
    page.click("#sessions .delete >> nth=0")
    expect(page.locator("#sessions a")).to_have_text(["first question"])
    ok("conversations are listed, switched and deleted")


def choosing(page):
    expect(page.locator("#model option")).to_have_text(["scripted"])
    ok("only models that one can talk to are offered")


def main():
    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=FLAGS)
        page = browser.new_page(viewport={"width": 1200, "height": 800})
        page.set_default_timeout(PATIENCE_MS)
        problems = []
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(URL)
        choosing(page)
        first = streaming(page)
        history(page, first)
        regenerating(page, stopping(page))
        restarting(page)
        markdown(page)
        phone(browser, page.url)
        several(page)
        assert not problems, problems
        browser.close()


main()
