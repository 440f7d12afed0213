// JSON as the fixtures have it, read into a tree. Throws std::runtime_error for anything else.
#pragma once
#include <cstdlib>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

namespace dultra {
namespace test {

struct Json {
  enum class Kind { kNull, kBoolean, kNumber, kString, kArray, kObject };
  Kind kind = Kind::kNull;
  double number = 0;  // of a boolean 0 or 1
  std::string string;
  std::vector<Json> array;
  std::map<std::string, Json> object;

  static Json parse(const std::string& text) {
    Reader reader{text, 0};
    Json value = reader.value();
    reader.space();
    if (reader.at != text.size()) reader.fail();
    return value;
  }
  bool present() const { return kind != Kind::kNull; }
  // A member, null where there is none.
  const Json& operator[](const std::string& key) const {
    static const Json none;
    const auto found = object.find(key);
    return found == object.end() ? none : found->second;
  }
  double number_or(double otherwise) const { return present() ? number : otherwise; }

 private:
  struct Reader {
    const std::string& text;
    size_t at;

    [[noreturn]] void fail() const {
      throw std::runtime_error("JSON: something unexpected at byte " + std::to_string(at));
    }
    void space() {
      while (at < text.size() && (text[at] == ' ' || text[at] == '\n' || text[at] == '\t' || text[at] == '\r')) ++at;
    }
    char peek() {
      space();
      if (at >= text.size()) fail();
      return text[at];
    }
    void expect(char c) {
      if (peek() != c) fail();
      ++at;
    }
    bool word(const char* expected) {
      if (text.compare(at, std::char_traits<char>::length(expected), expected) != 0) return false;
      at += std::char_traits<char>::length(expected);
      return true;
    }
    std::string quoted() {
      std::string out;
      for (expect('"'); at < text.size() && text[at] != '"'; ++at) {
        if (text[at] != '\\') {
          out += text[at];
          continue;
        }
        if (++at >= text.size()) fail();
        const size_t known = std::string("\"\\/bfnrt").find(text[at]);
        if (known != std::string::npos) {
          out += "\"\\/\b\f\n\r\t"[known];
        } else if (text[at] == 'u' && at + 4 < text.size()) {
          out += '?';  // no name that a test looks for has one
          at += 4;
        } else {
          fail();
        }
      }
      expect('"');
      return out;
    }
    // Elements up to `end`, each read by `one`.
    template <class One>
    void list(char end, const One& one) {
      ++at;
      if (peek() == end) {
        ++at;
        return;
      }
      for (;;) {
        one();
        if (peek() == end) break;
        expect(',');
      }
      ++at;
    }
    Json value() {
      Json out;
      const char first = peek();
      if (first == '{') {
        out.kind = Kind::kObject;
        list('}', [&] {
          const std::string key = quoted();
          expect(':');
          out.object[key] = value();
        });
      } else if (first == '[') {
        out.kind = Kind::kArray;
        list(']', [&] { out.array.push_back(value()); });
      } else if (first == '"') {
        out.kind = Kind::kString;
        out.string = quoted();
      } else if (word("null")) {
      } else if (word("true") || word("false")) {
        out.kind = Kind::kBoolean;
        out.number = first == 't';
      } else {
        const char* begin = text.c_str() + at;
        char* end = nullptr;
        out.kind = Kind::kNumber;
        out.number = std::strtod(begin, &end);
        if (end == begin) fail();
        at += size_t(end - begin);
      }
      return out;
    }
  };
};

}  // namespace test
}  // namespace dultra
