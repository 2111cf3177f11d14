/// What needs no exported generator: text, prompts, safetensors, files.
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <csignal>
#include <cstring>
#include <fstream>
#include <functional>
#include <iostream>

#include "dnd_fast/dnd_fast.h"
#include "dnd_fast/generator.hpp"
#include "files.hpp"
#include "json.hpp"
#include "prompts.hpp"
#include "safetensors.hpp"
#include "text.hpp"

namespace fs = std::filesystem;
using namespace dnd_fast;

namespace {

int failures = 0;

#define CHECK(condition)                                                                \
  do {                                                                                  \
    if (!(condition)) {                                                                 \
      ++failures;                                                                       \
      std::cerr << __FILE__ << ":" << __LINE__ << ": " #condition " does not hold.\n";  \
    }                                                                                   \
  } while (false)

/// Check that `call` throws an Error whose message has `part` in it.
void check_refused(const std::string& part, const std::function<void()>& call) {
  try {
    call();
    ++failures;
    std::cerr << "nothing was refused, expected: " << part << "\n";
  } catch (const Error& error) {
    const bool named = std::string(error.what()).find(part) != std::string::npos;
    failures += !named;
    if (!named) std::cerr << "refused with: " << error.what() << "\nexpected: " << part << "\n";
  }
}

/// A new folder that goes at the end.
struct Scratch {
  fs::path path;
  Scratch() {
    std::string name = (fs::temp_directory_path() / "dnd_fast.XXXXXX").string();
    CHECK(::mkdtemp(name.data()));
    path = name;
  }
  ~Scratch() { fs::remove_all(path); }
};

void write(const fs::path& file, const std::string& content) {
  std::ofstream(file, std::ios::binary) << content;
}

std::size_t entries(const fs::path& folder) {
  return static_cast<std::size_t>(std::distance(fs::directory_iterator(folder), {}));
}

void test_utf8() {
  CHECK(decode_utf8("a\xc3\xa4\xe2\x82\xac\xf0\x9f\x98\x80", "x") == U"a\u00e4\u20ac\U0001f600");
  const std::string broken[] = {
      "\x80",              // a continuation alone
      "\xc3",              // cut off
      "\xe2\x82",          // cut off
      "\xf0\x9f\x98",      // cut off
      "\xc0\xaf",          // overlong
      "\xe0\x80\xaf",      // overlong
      "\xed\xa0\x80",      // a surrogate
      "\xf4\x90\x80\x80",  // beyond U+10FFFF
      "\xff",
      "a\xc3("};
  for (const std::string& text : broken) {
    check_refused("it is not UTF-8 text", [&] { decode_utf8(text, "it"); });
    check_refused("prompts[1] is not UTF-8", [&] { check_prompts({"fine", "x" + text}, "prompts"); });
  }
  for (const char* blank : {"", " \t\r\n", "\x1c\x1f", "\xc2\x85\xc2\xa0\xe3\x80\x80"}) {
    CHECK(is_blank(blank, "x"));
  }
  for (const char* text : {"a", "\xe2\x80\x8b", "\x01"}) CHECK(!is_blank(text, "x"));
}

/// Against random.Random of Python 3.11.
void test_sample() {
  using Indices = std::vector<std::size_t>;
  CHECK(sample(24, 8, 7) == (Indices{10, 4, 12, 20, 1, 2, 17, 3}));
  CHECK(sample(24, 8, 0) == (Indices{12, 13, 1, 8, 16, 15, 23, 9}));
  CHECK(sample(3, 8, -5) == (Indices{0, 1, 2, 1, 2, 2, 2, 2}));
  CHECK(sample(5000, 8, std::int64_t{1} << 40) ==
        (Indices{849, 2893, 537, 3495, 397, 3176, 3269, 4591}));
  CHECK(sample(8, 8, INT64_MIN) == (Indices{6, 1, 7, 4, 0, 5, 2, 3}));
}

void test_read_prompts() {
  const Scratch scratch;
  const fs::path text = scratch.path / "task.txt", json = scratch.path / "task.jsonl";
  using Prompts = std::vector<std::string>;
  write(text, "\xef\xbb\xbfone\r\n\r\n \ntwo \xe2\x80\xa8 lines\rthree");
  CHECK(read_prompts(text) == (Prompts{"one", "two \xe2\x80\xa8 lines", "three"}));
  write(json, "{\"prompt\": \"caf\\u00e9\", \"response\": 1}\n\n{\"prompt\": \"two\"}\n");
  CHECK(read_prompts(json) == (Prompts{"caf\xc3\xa9", "two"}));
  const std::pair<std::string, std::string> broken[] = {
      {"{\"prompt\": 1}", "line 1: the prompt is of type number"},
      {"{\"text\": \"\"}", "no key 'prompt'"},
      {"[]", "no key 'prompt'"},
      {"{\"prompt\": \"\\ud800\"}", "not valid JSON"},
      {"{\"prompt\": \" \"}", "[0] is empty"},
      {std::string(1 << 20, '['), "not valid JSON"},
      {"\n\n", "there are no prompts"},
      {"{\"prompt\": \"a\"}\n{\"prompt\": \"\xff\"}", "line 2 is not UTF-8"}};
  for (const auto& [content, message] : broken) {
    write(json, content);
    check_refused(message, [&] { read_prompts(json); });
  }
  check_refused("does not exist", [&] { read_prompts(scratch.path / "no.txt"); });
  fs::create_directory(scratch.path / "folder.txt");
  check_refused("does not exist or is no file", [&] { read_prompts(scratch.path / "folder.txt"); });
  check_refused("are read from .txt", [&] { read_prompts(scratch.path / "task.csv"); });
}

std::string safetensors(const std::string& header, const std::string& numbers) {
  const std::uint64_t size = header.size();
  std::string content(8, '\0');
  std::memcpy(content.data(), &size, 8);
  return content + header + numbers;
}

void test_safetensors() {
  const std::vector<Tensor> tensors = {{"b", {2, 1}, {1, 2}}, {"a", {1, 3}, {3, 4, 5}}};
  const auto order = safetensors_order(tensors);
  std::string content = safetensors_header(order);
  CHECK(content.size() % 8 == 0);
  for (const Tensor* tensor : order) {
    content.append(reinterpret_cast<const char*>(tensor->values.data()), 4 * tensor->values.size());
  }
  const std::vector<Tensor> found = parse_safetensors(content, "file");
  CHECK(found.size() == 2 && found[0].name == "a" && found[1].name == "b");
  CHECK(found[0].shape == tensors[1].shape && found[0].values == tensors[1].values);
  CHECK(parse_safetensors(safetensors("{}", ""), "file").empty());
  for (std::size_t size = 0; size < content.size(); ++size) {  // cut off anywhere
    check_refused("file", [&] { parse_safetensors(content.substr(0, size), "file"); });
  }
  std::string flipped = content;
  flipped.back() ^= 1;
  check_refused("is damaged", [&] { parse_safetensors(flipped, "file"); });
  check_refused("bytes to spare", [&] { parse_safetensors(content + "x", "file"); });

  const auto entry = [](const std::string& shape, const std::string& offsets) {
    return R"({"dtype":"F32","shape":)" + shape + R"(,"data_offsets":)" + offsets + "}";
  };
  const std::pair<std::string, std::string> lies[] = {
      {R"({"a":)" + entry("[2]", "[4,12]") + "}", "begins at byte 4, expected 0"},
      {R"({"a":)" + entry("[2]", "[0,8]") + R"(,"b":)" + entry("[2]", "[4,12]") + "}", "begins at byte 4"},
      {R"({"a":)" + entry("[2]", "[0,4]") + "}", "expected 8 bytes"},
      {R"({"a":)" + entry("[2]", "[8,0]") + "}", "expected 8 bytes"},
      {R"({"a":)" + entry("[2]", "[-8,0]") + "}", "integers from 0"},
      {R"({"a":)" + entry("[2]", "[0,1e1]") + "}", "integers from 0"},
      {R"({"a":)" + entry("[2]", "[0,8,8]") + "}", "two of them"},
      {R"({"a":)" + entry("[4294967296,4294967296,4]", "[0,8]") + "}", "more than 2^40"},
      {R"({"a":)" + entry("[0,18446744073709551615]", "[0,0]") + "}", "integers from 0"},
      {R"({"a":)" + entry("[1099511627776]", "[0,4398046511104]") + "}", "integers from 0"},
      {R"({"a":)" + entry("[1000000000]", "[0,4000000000]") + "}", "is truncated"},
      {R"({"a":{"dtype":"F16","shape":[4],"data_offsets":[0,8]}})", "F32"},
      {R"({"a":{"shape":[2],"data_offsets":[0,8]}})", "no key 'dtype'"},
      {R"({"a":3})", "expected an object"},
      {"[]", "expected an object"},
      {"{", "not valid JSON"},
      {"{\"\xff\":1}", "not valid JSON"},
      {R"({"a":)" + std::string(200000, '[') + "}", "nests deeper"}};
  for (const auto& [header, message] : lies) {
    check_refused(message, [&] { parse_safetensors(safetensors(header, "12345678"), "file"); });
  }
  std::string huge = content;
  const std::uint64_t size = 100'000'001;
  std::memcpy(huge.data(), &size, 8);
  huge.resize(size + 64);
  check_refused("its header would have 100000001 bytes", [&] { parse_safetensors(huge, "file"); });
}

void test_adapter() {
  const Scratch scratch;
  const Adapter adapter{{{"a", {1, 2}, {1, 2}}}, "{\n  \"r\": 1\n}\n", {}};
  const fs::path folder = scratch.path / "new" / "adapter";
  adapter.save(folder.string() + "/");
  write(folder / "README.md", "mine");
  adapter.save(folder);
  const Adapter found = Adapter::load(folder);
  CHECK(found.config == adapter.config && found.tensors[0].values == adapter.tensors[0].values);
  CHECK(entries(folder) == 3 && entries(folder.parent_path()) == 1);
  const mode_t mask = ::umask(0);
  ::umask(mask);
  struct stat status {};
  CHECK(::stat((folder / "adapter_model.safetensors").c_str(), &status) == 0);
  CHECK((status.st_mode & 0777) == (0666 & ~mask));

  write(scratch.path / "file", "");
  check_refused("file is a file", [&] { adapter.save(scratch.path / "file"); });
  check_refused("cannot be written", [&] { adapter.save(scratch.path / "file" / "adapter"); });
  const fs::path blocked = scratch.path / "blocked";
  fs::create_directories(blocked / "adapter_config.json");
  check_refused("adapter_config.json is a folder", [&] { adapter.save(blocked); });
  CHECK(entries(blocked) == 1 && entries(scratch.path) == 3);
  check_refused("cannot be written", [&] { adapter.save("/proc/adapter"); });
  check_refused("does not exist", [&] { Adapter::load(scratch.path / "no"); });

  // A full disk, without one to fill.
  rlimit whole{};
  CHECK(::getrlimit(RLIMIT_FSIZE, &whole) == 0);
  std::signal(SIGXFSZ, SIG_IGN);
  const rlimit small{64, whole.rlim_max};
  CHECK(::setrlimit(RLIMIT_FSIZE, &small) == 0);
  check_refused("cannot be written: File too large", [&] { adapter.save(folder); });
  CHECK(::setrlimit(RLIMIT_FSIZE, &whole) == 0);
  CHECK(entries(folder) == 3 && entries(folder.parent_path()) == 1);
  CHECK(Adapter::load(folder).config == adapter.config);

  write(folder / "adapter_config.json", "[]");
  check_refused("JSON of type array", [&] { Adapter::load(folder); });
}

void test_c_api() {
  CHECK(!dnd_fast_load("/no/such/folder"));
  CHECK(std::strstr(dnd_fast_error(), "no exported generator at /no/such/folder"));
  CHECK(!dnd_fast_load(nullptr));
  CHECK(!std::strcmp(dnd_fast_error(), "folder is NULL."));
  CHECK(!dnd_fast_generate(nullptr, nullptr, 0, 0));
  CHECK(dnd_fast_adapter_size(nullptr) == 0);
  CHECK(dnd_fast_adapter_tensor(nullptr, 0, nullptr) == -1);
  CHECK(dnd_fast_adapter_save(nullptr, "x") == -1);
  dnd_fast_free(nullptr);
  dnd_fast_adapter_free(nullptr);
}

void test_sha256() {
  const Scratch scratch;
  write(scratch.path / "abc", "abc");  // FIPS 180-4's own example
  CHECK(sha256(scratch.path / "abc") ==
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

}  // namespace

int main() {
  test_utf8();
  test_sample();
  test_read_prompts();
  test_safetensors();
  test_adapter();
  test_c_api();
  test_sha256();
  std::cout << (failures ? "FAILED\n" : "all checks hold\n");
  return failures != 0;
}
