"""The page, in a real browser that has no network: what a visitor does, and what goes wrong."""

import contextlib
import os
import shutil
import threading
import time
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("gradio", reason="needs the extra serve")
pytest.importorskip("selenium", reason="needs selenium")

import httpx
import uvicorn
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys as Press
from selenium.webdriver.support.ui import WebDriverWait

from dnd_fast.serving.launch import launch
from dnd_fast.serving.security import Keys

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
SHOTS = os.environ.get("DND_FAST_SCREENSHOTS")  # a folder to look at them in
KEY = "a-key-that-is-long-enough"

pytestmark = pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None, reason="needs chromium and chromedriver (chromium-driver)"
)


@contextlib.contextmanager
def served(generator, **options):
    """The address of ``dnd-fast serve`` while the block runs."""
    with launch(generator, **options) as app:
        server = uvicorn.Server(
            uvicorn.Config(app, port=0, log_level="error", timeout_graceful_shutdown=1)
        )
        thread = threading.Thread(target=server.run)
        thread.start()
        try:
            while not server.started:
                time.sleep(0.02)
            yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture
def browser(tmp_path):
    """Chromium, which reaches this machine alone, and notes what it asks others for."""
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (
        "--headless=new",
        "--no-sandbox",
        "--disable-dev-shm-usage",
        "--disable-gpu",
        "--window-size=1200,1000",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    ):
        options.add_argument(flag)
    options.add_experimental_option("prefs", {"download.default_directory": str(tmp_path)})
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    try:
        yield driver
    finally:
        driver.quit()


def button(browser, text):
    xpath = f"//*[normalize-space()='{text}']/ancestor-or-self::*[self::button or self::a]"
    return browser.find_element(By.XPATH, xpath)


def wait(browser, what, seconds=60):
    return WebDriverWait(browser, seconds, ignored_exceptions=(Exception,)).until(what)


def shows(text):
    return lambda browser: text in browser.find_element(By.TAG_NAME, "body").text


def shoot(browser, name):
    if SHOTS:
        browser.save_screenshot(f"{SHOTS}/{name}.png")


def fill(browser, label, text):
    xpath = f"//label[.//*[normalize-space()='{label}']]//textarea"
    area = wait(browser, lambda b: b.find_element(By.XPATH, xpath))
    area.clear()
    area.send_keys(text)
    return area


def test_a_visit(browser, demo_generator, prompt_sets, truth, tmp_path):
    """Make an adapter, compare base and adapter, download it; no request leaves the machine."""
    with served(demo_generator) as address:
        browser.get(address)
        wait(browser, lambda b: button(b, "Make the adapter"))
        shoot(browser, "1-empty")

        fill(browser, "Prompts, one a line", " ")
        button(browser, "Make the adapter").click()
        wait(browser, shows("there are no prompts"))
        shoot(browser, "2-no-prompts")

        fill(browser, "Prompts, one a line", "\n".join(prompt_sets[0]))
        button(browser, "Make the adapter").click()
        wait(browser, shows("in all"))
        made = browser.find_element(By.ID, "made").text
        assert f"of {len(prompt_sets[0])} prompts" in made
        for stage in ("encode", "decode", "detokenize", "publish"):
            assert stage in made
        shoot(browser, "3-made")

        fill(browser, "Ask both", prompt_sets[0][0]).send_keys(Press.ENTER)
        wait(browser, shows(truth[0][0]))
        wait(browser, lambda b: len(b.find_elements(By.CSS_SELECTOR, ".message.bot")) == 2)
        base, adapter = (m.text for m in browser.find_elements(By.CSS_SELECTOR, ".message.bot"))
        assert truth[0][0] in adapter
        assert truth[0][0] not in base
        shoot(browser, "4-asked")

        button(browser, "Download the adapter").click()
        wait(browser, lambda _: list(tmp_path.glob("dnd-*.zip")))
        (archive,) = tmp_path.glob("dnd-*.zip")
        names = {Path(name).name for name in zipfile.ZipFile(archive).namelist()}
        assert names >= {"adapter_config.json", "adapter_model.safetensors"}

        button(browser, "What runs").click()
        wait(browser, shows("Memory of this process"))
        shoot(browser, "5-running")
        asked = "\n".join(entry["message"] for entry in browser.get_log("performance"))
        addresses = {part.split('"')[0] for part in asked.split('"url":"')[1:]}
        others = {a for a in addresses if a.startswith("http") and not a.startswith(f"{address}/")}
        assert not others, "the page asks other servers"


def test_uploaded_prompts(browser, demo_generator, prompt_sets, tmp_path):
    """A file's prompts come into the box; one that is no text is refused."""
    file, broken = tmp_path / "prompts.jsonl", tmp_path / "broken.jsonl"
    file.write_text("".join(f'{{"prompt": "{p}"}}\n' for p in prompt_sets[1]))
    broken.write_text("{")
    with served(demo_generator) as address:
        browser.get(address)
        wait(browser, lambda b: button(b, "Upload prompts"))
        browser.find_element(By.CSS_SELECTOR, "input[type=file]").send_keys(str(file))
        area = browser.find_element(By.CSS_SELECTOR, "textarea")
        wait(browser, lambda _: area.get_property("value") == "\n".join(prompt_sets[1]))
        browser.find_element(By.CSS_SELECTOR, "input[type=file]").send_keys(str(broken))
        wait(browser, shows("not valid JSON"))


def test_the_page_asks_for_a_key(browser, demo_generator):
    with served(demo_generator, keys=Keys([KEY])) as address:
        browser.get(address)
        name, word = wait(
            browser,
            lambda b: [
                b.find_element(By.CSS_SELECTOR, f"input[type={t}]") for t in ("text", "password")
            ],
        )
        assert "Make the adapter" not in browser.page_source
        name.send_keys("me")
        word.send_keys("a-wrong-key-that-is-long", Press.ENTER)
        wait(browser, shows("Incorrect"))
        shoot(browser, "6-key")
        name.send_keys("me")
        word.send_keys(KEY, Press.ENTER)
        wait(browser, lambda b: button(b, "Make the adapter"))


@pytest.mark.parametrize(
    "prefix", ["/gradio_api/file=", "/file=", "/static/", "/gradio_api/proxy="]
)
def test_no_file_of_the_machine_is_served(demo_generator, prefix, tmp_path):
    """Neither the system's, nor the project's, nor the prompts of others."""
    with (
        served(demo_generator, adapters=tmp_path) as address,
        httpx.Client(base_url=address, trust_env=False, timeout=60) as web,
    ):
        prompts = {"prompts": ["a secret of somebody else"] * 8}
        assert web.post("/v1/adapters", json=prompts).status_code == 200
        (secret,) = tmp_path.glob("prompts/dnd-*.json")
        assert "a secret" in secret.read_text()
        for file in ("/etc/passwd", __file__, secret, f"{tmp_path}/../{tmp_path.name}"):
            assert not web.get(f"{prefix}{file}").is_success
