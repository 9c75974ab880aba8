// A page to try the models of the server that it came from. Texts are put into the page as text,
// never as markup.
"use strict";

const WORDS = {
  zh: {
    docs: "接口文档", model: "模型", kind: "任务", examples: "示例：", go: "预测", other: "English",
    text: "文本", text_pair: "第二段文本（可不填）", question: "问题", choices: "选项（每行一个）",
    sentences: "句子（每行一个）", busy: "计算中……", nothing: "没有找到", chosen: "选中的标签",
    score: "得分", best: "答案", more: "其他候选", blank: "空", masked: "[MASK]", vector: "维向量",
    cut: "文本过长，末尾已被截去。", loading: "模型正在加载，请稍候……", layers: "层", hidden: "维",
    tokens: "最多词元", failed: "无法加载", unreachable: "连接不上服务器",
    classification: "文本分类", "multi-label": "多标签分类", score_kind: "打分", spans: "阅读理解",
    choice: "多项选择", entities: "命名实体", "fill-mask": "完形填空", embedding: "句向量",
    similarity: "句子相似度",
  },
  en: {
    docs: "API", model: "Model", kind: "Task", examples: "Examples: ", go: "Predict", other: "中文",
    text: "Text", text_pair: "Second text (if there is one)", question: "Question",
    choices: "Choices (one a line)", sentences: "Sentences (one a line)", busy: "Computing …",
    nothing: "Nothing found", chosen: "Chosen labels", score: "Score", best: "Answer",
    more: "Other candidates", blank: "Blank", masked: "[MASK]", vector: "dimensions",
    cut: "The text was too long; its end was cut off.", loading: "The models are being loaded …",
    layers: "layers", hidden: "wide", tokens: "tokens at most", failed: "could not be loaded",
    unreachable: "The server cannot be reached", classification: "Classification",
    "multi-label": "Several labels", score_kind: "Score", spans: "Reading comprehension",
    choice: "Multiple choice", entities: "Named entities", "fill-mask": "Fill the blanks",
    embedding: "Sentence vector", similarity: "Similarity of sentences",
  },
};

// Of each kind: its fields, and examples of their contents.
const KINDS = {
  classification: {
    fields: ["text", "text_pair"],
    examples: [
      { text: "央行宣布下调存款准备金率，股市应声上涨" },
      { text: "主队补时绝杀，三比二逆转取胜" },
      { text: "今天天气怎么样", text_pair: "今天的天气好吗" },
    ],
  },
  "multi-label": { fields: ["text", "text_pair"], examples: [{ text: "新款手机发布，股价大涨" }] },
  score: {
    fields: ["text", "text_pair"],
    examples: [{ text: "怎样开通花呗", text_pair: "花呗如何开通" }],
  },
  spans: {
    fields: ["text", "question"],
    examples: [
      {
        text: "长江发源于青藏高原，全长约6300公里，是亚洲第一长河，最后在上海注入东海。",
        question: "长江在哪里入海？",
      },
    ],
  },
  choice: {
    fields: ["text", "question", "choices"],
    examples: [
      {
        text: "女：明天几点出发？\n男：六点太早了，八点吧。",
        question: "他们明天几点出发？",
        choices: ["六点", "七点", "八点"],
      },
      {
        text: "他做事总是#idiom000001#，从不放弃。",
        choices: ["半途而废", "持之以恒", "画蛇添足"],
      },
    ],
  },
  entities: {
    fields: ["text"],
    examples: [{ text: "李明昨天从北京飞往上海，参加复旦大学的会议。" }],
  },
  "fill-mask": {
    fields: ["text"],
    examples: [{ text: "今天[MASK]气很好，我们去公[MASK]散步。" }, { text: "北京是中国的[MASK]都。" }],
  },
  embedding: { fields: ["text"], examples: [{ text: "今天天气很好" }] },
  similarity: {
    fields: ["sentences"],
    examples: [{ sentences: ["今天天气很好", "今天的天气不错", "股市大跌", "明天会下雨吗"] }],
  },
};
const LINES = { text: 4, text_pair: 2, question: 1, choices: 4, sentences: 5 };

let language = (navigator.language || "zh").toLowerCase().startsWith("zh") ? "zh" : "en";
let models = [];
let shownState = "";
const $ = (id) => document.getElementById(id);
const say = (word) => WORDS[language][word];
const kindName = (kind) => say(kind === "score" ? "score_kind" : kind);

function element(tag, options, ...children) {
  const { className, ...attributes } = options || {};
  const made = document.createElement(tag);
  if (className) made.className = className;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

function percent(number) {
  return (100 * number).toFixed(1) + " %";
}

function bars(entries, name) {
  return entries.map((entry) => {
    const fill = element("span", { className: "fill" });
    fill.style.width = percent(entry.probability).replace(" ", "");
    return element(
      "div", { className: "bar" },
      element("span", { className: "name" }, entry[name]),
      element("span", { className: "track" }, fill),
      element("span", { className: "number" }, percent(entry.probability)),
    );
  });
}

// Places count code points, which are not what JavaScript's strings count.
function marked(text, places) {
  const points = Array.from(text);
  const shown = element("p", { className: "text" });
  let end = 0;
  for (const place of places) {
    shown.append(points.slice(end, place.start).join(""));
    const mark = element("mark", {}, points.slice(place.start, place.end).join(""));
    if (place.type) mark.append(element("small", {}, place.type));
    shown.append(mark);
    end = place.end;
  }
  shown.append(points.slice(end).join(""));
  return shown;
}

function oneChoice(found) {
  const title = found.blank ? `${say("blank")} ${found.blank}` : say("best");
  return [element("h2", {}, `${title}：${found.answer}`), ...bars(found.choices, "answer")];
}

const SHOW = {
  classification: (out) => {
    const named = ({ label, name, probability }) => ({
      shown: name ? `${name}（${label}）` : label, probability,
    });
    return [element("h2", {}, named(out).shown), ...bars(out.labels.map(named), "shown")];
  },
  "multi-label": (out) => [
    element("h2", {}, `${say("chosen")}：${out.chosen.join("、") || say("nothing")}`),
    ...bars(out.labels, "label"),
  ],
  score: (out) => [element("h2", {}, `${say("score")}：${out.score.toFixed(3)}`)],
  spans: (out, input) =>
    out.answers.length
      ? [
          element("h2", {}, `${say("best")}：${out.answer}`),
          marked(input.text, [out]),
          element("h2", {}, say("more")),
          ...bars(out.answers, "answer"),
        ]
      : [element("p", {}, say("nothing"))],
  choice: (out) => (out.blanks || [out]).flatMap(oneChoice),
  entities: (out, input) => {
    const list = out.entities.map((e) => ({ name: `${e.text}（${e.type}）`, probability: e.probability }));
    const rest = list.length ? bars(list, "name") : [element("p", {}, say("nothing"))];
    return [marked(input.text, out.entities), ...rest];
  },
  "fill-mask": (out) =>
    out.masks.flatMap((mask, i) => [
      element("h2", {}, out.masks.length > 1 ? `${say("masked")} ${i + 1}` : say("masked")),
      ...bars(mask, "token"),
    ]),
  embedding: (out) => [
    element("h2", {}, `${out.vector.length} ${say("vector")}`),
    element("pre", {}, out.vector.map((number) => number.toFixed(4)).join("  ")),
  ],
};

function matrix(sentences, outputs) {
  const head = element("tr", {}, element("th"), ...sentences.map((_, i) => element("th", {}, `${i + 1}`)));
  const rows = outputs.map((out, i) => {
    const cells = out.similarities.map((value) => {
      const cell = element("td", { className: "cell" }, value.toFixed(2));
      cell.style.background = `rgb(36 99 197 / ${Math.max(0, value) ** 4 * 0.7})`;
      return cell;
    });
    return element("tr", {}, element("th", {}, `${i + 1}. ${sentences[i]}`), ...cells);
  });
  return element("div", { className: "wide" }, element("table", {}, head, ...rows));
}

function currentModel() {
  return models.find((model) => model.name === $("model").value);
}

function fillSelect(select, entries) {
  const before = select.value;
  select.replaceChildren(...entries.map(([value, shown]) => element("option", { value }, shown)));
  if (entries.some(([value]) => value === before)) select.value = before;
}

function showKind(keep) {
  const kind = $("kind").value;
  const before = keep ? values() : {};
  const { fields, examples } = KINDS[kind] || { fields: [], examples: [] };
  $("fields").replaceChildren(
    ...fields.map((name) => {
      const area = element("textarea", { id: `field-${name}`, rows: LINES[name] });
      area.value = [].concat(before[name] || "").join("\n");
      return element("label", {}, say(name), area);
    }),
  );
  $("examples").replaceChildren(
    ...examples.map((example) => {
      const first = [].concat(Object.values(example)[0])[0];
      const shown = Array.from(first).slice(0, 12).join("") + (Array.from(first).length > 12 ? "…" : "");
      const button = element("button", { type: "button" }, shown);
      button.addEventListener("click", () => {
        for (const name of fields) {
          $(`field-${name}`).value = [].concat(example[name] || "").join("\n");
        }
        predict();
      });
      return button;
    }),
  );
  if (!keep) $("result").replaceChildren();
}

function showModel(keep) {
  const model = currentModel();
  if (!model) return;
  if (model.state !== "ready") {
    $("about").textContent = model.error ? `${say("failed")}: ${model.error}` : say("loading");
  } else {
    $("about").textContent = [
      model.task || "", `${model.layers} ${say("layers")}`, `${model.hidden} ${say("hidden")}`,
      `${say("tokens")} ${model.tokens}`,
    ].filter(Boolean).join(" · ");
  }
  fillSelect($("kind"), (model.kinds || []).map((kind) => [kind, kindName(kind)]));
  $("go").disabled = model.state !== "ready";
  showKind(keep);
}

function values() {
  const found = {};
  for (const area of $("fields").querySelectorAll("textarea")) {
    const name = area.id.replace("field-", "");
    const isList = name === "choices" || name === "sentences";
    const lines = () => area.value.split("\n").map((line) => line.trim()).filter(Boolean);
    found[name] = isList ? lines() : area.value;
  }
  return found;
}

async function predict() {
  const model = currentModel();
  const kind = $("kind").value;
  const given = values();
  const input = {};
  for (const [name, value] of Object.entries(given)) {
    if (name === "text" || value.length) input[name] = value;
  }
  const inputs = kind === "similarity" ? given.sentences.map((text) => ({ text })) : [input];
  const result = $("result");
  result.replaceChildren(element("p", {}, say("busy")));
  $("go").disabled = true;
  try {
    const answer = await fetch(`/v1/models/${encodeURIComponent(model.name)}:${kind}`, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ inputs, top_k: 10 }),
    });
    const isJson = (answer.headers.get("content-type") || "").includes("json");
    const found = isJson ? await answer.json() : { error: await answer.text() };
    if (!answer.ok) throw new Error(found.error);
    const out = found.outputs[0];
    const shown = kind === "similarity" ? [matrix(given.sentences, found.outputs)] : SHOW[kind](out, input);
    if (out.truncated) shown.push(element("p", { className: "hint" }, say("cut")));
    result.replaceChildren(...shown);
  } catch (error) {
    const message = error instanceof TypeError ? say("unreachable") : error.message;
    result.replaceChildren(element("p", { className: "error" }, message));
  } finally {
    $("go").disabled = false;
  }
}

function speak() {
  document.documentElement.lang = language;
  for (const part of document.querySelectorAll("[data-say]")) part.textContent = say(part.dataset.say);
  $("language").textContent = say("other");
  showModel(true);
}

async function refresh() {
  try {
    models = (await (await fetch("/v1/models")).json()).models;
  } catch {
    $("about").textContent = say("unreachable");
    setTimeout(refresh, 2000);
    return;
  }
  fillSelect($("model"), models.map((model) => [model.name, model.name]));
  // What is being typed stays as it is while other models are loaded.
  const state = JSON.stringify(currentModel());
  if (state !== shownState) showModel(true);
  shownState = state;
  if (models.some((model) => model.state === "loading" || model.state === "compiling")) {
    setTimeout(refresh, 1000);
  }
}

$("language").addEventListener("click", () => {
  language = language === "zh" ? "en" : "zh";
  $("result").replaceChildren();
  speak();
});
$("model").addEventListener("change", () => showModel(false));
$("kind").addEventListener("change", () => showKind(false));
$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  predict();
});
speak();
refresh();
