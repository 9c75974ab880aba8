"""The page of tools.serve in a real Chromium: pick, type, click, read; skipped where there is none.

Debian's packages `chromium` and `chromium-driver` are what it takes.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from serving import running

import clue_jax

webdriver = pytest.importorskip("selenium.webdriver")
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.support.select import Select  # noqa: E402
from selenium.webdriver.support.wait import WebDriverWait  # noqa: E402

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not CHROMIUM or not DRIVER, reason="no Chromium (apt-get install chromium chromium-driver)"
)


@pytest.fixture(scope="module")
def server(kinds):
    with running(kinds, "--warm-up", "none") as found:
        yield found


@pytest.fixture(scope="module")
def browser():
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=900,1000"):
        options.add_argument(argument)
    options.add_argument("--lang=zh-CN")
    options.add_experimental_option("prefs", {"intl.accept_languages": "zh-CN"})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def page(browser, server):
    """The page, loaded, with its models."""
    browser.set_window_size(900, 1000)
    browser.get(f"http://127.0.0.1:{server.port}/")
    wait(browser, lambda: browser.find_elements(By.CSS_SELECTOR, "#model option"))
    yield browser
    faults = [line for line in browser.get_log("browser") if line["level"] == "SEVERE"]
    assert not [line for line in faults if "422" not in line["message"]]


def wait(browser, condition):
    return WebDriverWait(browser, 60, 0.1).until(lambda _: condition())


def choose(page, model, kind=None):
    Select(page.find_element(By.ID, "model")).select_by_value(model)
    if kind:
        Select(page.find_element(By.ID, "kind")).select_by_value(kind)


def type_in(page, **fields):
    for name, text in fields.items():
        area = page.find_element(By.ID, f"field-{name}")
        area.clear()
        area.send_keys(text)


def predict(page):
    page.find_element(By.ID, "go").click()
    return result(page)


def result(page):
    section = page.find_element(By.ID, "result")
    wait(page, lambda: section.text and "计算中" not in section.text and "Comp" not in section.text)
    return section


def screenshot(page, name):
    """Kept where CLUE_JAX_SCREENSHOTS says, to be looked at."""
    folder = os.environ.get("CLUE_JAX_SCREENSHOTS")
    if folder:
        page.save_screenshot(str(Path(folder) / f"{name}.png"))


def test_labels_have_bars(page, kinds):
    choose(page, "classification")
    type_in(page, text="清晨五点，渔港的灯亮了。", text_pair="天亮了")
    shown = predict(page)
    given = {"text": "清晨五点，渔港的灯亮了。", "text_pair": "天亮了"}
    (expected,) = clue_jax.Predictor(kinds["classification"]).predict([given])
    assert shown.find_element(By.TAG_NAME, "h2").text == expected["label"]
    names = [bar.text for bar in shown.find_elements(By.CSS_SELECTOR, ".bar .name")]
    assert names == [label["label"] for label in expected["labels"]]
    fills = shown.find_elements(By.CSS_SELECTOR, ".fill")
    tracks = shown.find_elements(By.CSS_SELECTOR, ".track")
    for fill, track, label in zip(fills, tracks, expected["labels"], strict=True):
        width = fill.size["width"] / track.size["width"]
        assert width == pytest.approx(label["probability"], abs=0.02)
    screenshot(page, "classification")


@pytest.mark.parametrize("kind", ["multi-label", "score", "choice", "embedding"])
def test_examples_are_clicked(page, kind):
    choose(page, kind if kind != "embedding" else "fill-mask", kind)
    buttons = page.find_elements(By.CSS_SELECTOR, "#examples button")
    assert buttons
    for button in buttons:
        button.click()
        shown = result(page)
        assert not shown.find_elements(By.CLASS_NAME, "error"), shown.text
        expected = {
            "multi-label": "选中的标签", "score": "得分", "choice": "#idiom", "embedding": "32 维",
        }  # fmt: skip
    assert expected[kind] in shown.text
    screenshot(page, kind)


def test_entities_are_marked_where_they_stand(page, kinds):
    """An astral character before them does not move the marks."""
    text = "𠮷野家李明昨天从北京飞往上海"
    choose(page, "entities")
    # The driver types no astral characters; the page takes them as it takes pasted ones.
    area = page.find_element(By.ID, "field-text")
    page.execute_script("arguments[0].value = arguments[1]", area, text)
    shown = predict(page)
    (expected,) = clue_jax.Predictor(kinds["entities"]).predict([text])
    assert expected["entities"]
    marks = [
        page.execute_script("return arguments[0].firstChild.textContent", mark)
        for mark in shown.find_elements(By.TAG_NAME, "mark")
    ]
    assert marks == [entity["text"] for entity in expected["entities"]]
    kinds_shown = [small.text for small in shown.find_elements(By.CSS_SELECTOR, "mark small")]
    assert kinds_shown == [entity["type"] for entity in expected["entities"]]
    screenshot(page, "entities")


def test_answers_are_marked_in_the_passage(page, kinds):
    given = {"text": "长江全长约6300公里，最后在上海注入东海。", "question": "长江在哪里入海？"}
    choose(page, "spans")
    type_in(page, **given)
    shown = predict(page)
    (expected,) = clue_jax.Predictor(kinds["spans"]).predict([given])
    assert shown.find_element(By.TAG_NAME, "mark").text == expected["answer"]
    assert shown.find_element(By.CLASS_NAME, "text").text == given["text"]
    screenshot(page, "spans")


def test_blanks_are_filled(page, kinds):
    choose(page, "fill-mask")
    type_in(page, text="今天[MASK]气很好，去公[MASK]")
    shown = predict(page)
    found = clue_jax.Predictor(kinds["fill-mask"]).fill_mask("今天[MASK]气很好，去公[MASK]", 10)
    names = [bar.text for bar in shown.find_elements(By.CSS_SELECTOR, ".bar .name")]
    assert names == [filling.token for place in found for filling in place]
    screenshot(page, "fill-mask")


def test_sentences_are_compared(page):
    choose(page, "fill-mask", "similarity")
    type_in(page, sentences="今天天气很好\n今天的天气不错\n股市大跌")
    shown = predict(page)
    cells = [cell.text for cell in shown.find_elements(By.CSS_SELECTOR, "td")]
    assert len(cells) == 9 and cells[0] == cells[4] == cells[8] == "1.00"
    screenshot(page, "similarity")


def test_errors_are_said_in_words(page):
    choose(page, "fill-mask")
    type_in(page, text="没有空")
    shown = predict(page)
    assert shown.find_element(By.CLASS_NAME, "error").text == "input 1: the text holds no [MASK]"


def test_markup_in_a_text_stays_a_text(page):
    choose(page, "spans")
    text = "<img src=x onerror=alert(1)><b>粗</b>北京"
    type_in(page, text=text, question="哪里？")
    shown = predict(page)
    assert not shown.find_elements(By.TAG_NAME, "img") and not shown.find_elements(By.TAG_NAME, "b")
    assert shown.find_element(By.CLASS_NAME, "text").text == text


def test_both_languages(page):
    go = page.find_element(By.ID, "go")
    assert go.text == "预测"
    page.find_element(By.ID, "language").click()
    assert go.text == "Predict"
    assert page.find_element(By.TAG_NAME, "html").get_attribute("lang") == "en"
    choose(page, "classification")
    type_in(page, text="清晨")
    assert predict(page).text
    screenshot(page, "english")
    page.find_element(By.ID, "language").click()
    assert go.text == "预测" and page.find_element(By.ID, "field-text").get_attribute("value")


def test_a_phone_needs_no_sideways_scrolling(page):
    page.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True},
    )
    try:
        for model, kind in (("spans", "spans"), ("fill-mask", "similarity")):
            choose(page, model, kind)
            page.find_element(By.CSS_SELECTOR, "#examples button").click()
            result(page)
            width = page.execute_script("return document.documentElement.scrollWidth")
            assert width <= 360
        screenshot(page, "phone")
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_nothing_comes_from_elsewhere(page, server):
    addresses = page.execute_script(
        "return performance.getEntriesByType('resource').map(entry => entry.name)"
    )
    assert len(addresses) >= 3
    assert all(address.startswith(f"http://127.0.0.1:{server.port}/") for address in addresses)
    _, _, headers = server.request("GET", "/")
    assert headers["content-security-policy"].startswith("default-src 'self'")
