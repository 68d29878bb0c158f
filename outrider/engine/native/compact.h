// Weights of bfloat16 in three quarters of their bytes, to the last bit: a processor takes its time from reading them.
//
// The exponents of a layer's weights are few: sixteen of them, chosen for each panel, are those of all but one weight in
// some ten thousand. So a weight is its sign and mantissa, a byte, and four bits that say which exponent. What has another
// one stands once more, whole, in a list behind the panel. (That a trained model's exponents carry some three bits has been
// used before to make models smaller without loss: Zhang et al., DFloat11, arXiv 2504.11651.)
//
// A panel of `num_lines` lines is a line with a table of exponents, twice; then group after group of four lines, of which
// each is a line of codes, that of number i in the four bits of word i that belong to the line, and half a line of signs
// and mantissas for each of the four; and then the list: where its numbers stand, rising, and the numbers.

#pragma once

#include <functional>
#include <numeric>

#include "product.h"

namespace outrider {

constexpr int kExponents = 16;
constexpr int64_t kNumbersPerLine = kLineBytes / 2;
constexpr int64_t kLinesPerGroup = 4;
constexpr int64_t kGroupBytes = kLineBytes + kLinesPerGroup * kNumbersPerLine;

// How many numbers of a panel of so many lines may stand in its list; half as many in bytes are whole lines.
inline int64_t num_listed_max(int64_t num_lines) { return (num_lines / 16 + kLanes * 2) / (kLanes * 2) * (kLanes * 2); }

inline int64_t num_groups(int64_t num_lines) { return (num_lines + kLinesPerGroup - 1) / kLinesPerGroup; }

inline int64_t compact_bytes(int64_t num_lines) {
  return kLineBytes + num_groups(num_lines) * kGroupBytes + num_listed_max(num_lines) * (sizeof(uint32_t) + sizeof(uint16_t));
}

// Writes a panel of whole numbers. Returns whether its list holds what it has to.
inline bool write_compact(const uint16_t* numbers, int64_t num_lines, uint8_t* panel) {
  const int64_t num = num_lines * kNumbersPerLine, num_listed = num_listed_max(num_lines);
  std::array<int64_t, 256> counts{};
  for (int64_t index = 0; index < num; ++index) ++counts[numbers[index] >> 7 & 255];
  std::array<uint8_t, 256> frequent;
  std::iota(frequent.begin(), frequent.end(), 0);
  std::ranges::stable_sort(frequent, std::greater(), [&](uint8_t exponent) { return counts[exponent]; });
  std::array<int, 256> codes;
  codes.fill(-1);
  auto* table = reinterpret_cast<uint16_t*>(panel);
  for (int code = 0; code < kExponents; ++code) {
    codes[frequent[code]] = code;
    table[code] = table[code + kExponents] = static_cast<uint16_t>(frequent[code] << 7);
  }
  uint8_t* groups = panel + kLineBytes;
  auto* places = reinterpret_cast<uint32_t*>(groups + num_groups(num_lines) * kGroupBytes);
  auto* listed = reinterpret_cast<uint16_t*>(places + num_listed);
  std::fill(groups, reinterpret_cast<uint8_t*>(places), uint8_t{});
  std::fill_n(places, num_listed, std::numeric_limits<uint32_t>::max());
  std::fill_n(listed, num_listed, uint16_t{});
  for (int64_t index = 0, next = 0; index < num; ++index) {
    const int64_t line = index / kNumbersPerLine, i = index % kNumbersPerLine, in_group = line % kLinesPerGroup;
    uint8_t* group = groups + line / kLinesPerGroup * kGroupBytes;
    int code = codes[numbers[index] >> 7 & 255];
    if (code < 0) {
      if (next == num_listed) return false;
      places[next] = static_cast<uint32_t>(index);
      listed[next++] = numbers[index];
      code = 0;
    }
    reinterpret_cast<uint16_t*>(group)[i] |= static_cast<uint16_t>(code << 4 * in_group);
    group[kLineBytes + in_group * kNumbersPerLine + i] =
        static_cast<uint8_t>((numbers[index] >> 8 & 0x80) | (numbers[index] & 0x7F));
  }
  return true;
}

// A group of lines, of which each comes as it is multiplied.
class CompactGroup {
 public:
  CompactGroup(const uint8_t* table, const uint8_t* group) : table_(table), group_(group) {}

#ifdef __AVX512BF16__
  __m512i operator[](int64_t line) const {
    const auto* bytes = reinterpret_cast<const __m256i*>(group_ + kLineBytes + line * kNumbersPerLine);
    const __m512i codes = _mm512_srli_epi16(_mm512_loadu_si512(group_), static_cast<unsigned>(4 * line));
    const __m512i exponents = _mm512_permutexvar_epi16(codes, _mm512_loadu_si512(table_));
    const __m512i sign_and_mantissa = _mm512_set1_epi16(static_cast<int16_t>(0x807F));
    return _mm512_ternarylogic_epi32(_mm512_cvtepi8_epi16(_mm256_loadu_si256(bytes)), sign_and_mantissa, exponents,
                                     0xEA);  // (a & b) | c
  }

  void unpack(uint8_t* lines) const {
    for (int64_t line = 0; line < kLinesPerGroup; ++line) _mm512_storeu_si512(lines + line * kLineBytes, (*this)[line]);
  }
#else
  void unpack(uint8_t* lines) const {
    std::array<uint16_t, kNumbersPerLine> exponents, codes, numbers;
    std::memcpy(exponents.data(), table_, sizeof(exponents));
    std::memcpy(codes.data(), group_, sizeof(codes));
    for (int64_t line = 0; line < kLinesPerGroup; ++line) {
      const uint8_t* bytes = group_ + kLineBytes + line * kNumbersPerLine;
      for (int64_t i = 0; i < kNumbersPerLine; ++i)
        numbers[i] = (bytes[i] & 0x80) << 8 | (bytes[i] & 0x7F) | exponents[codes[i] >> 4 * line & 15];
      std::memcpy(lines + line * kLineBytes, numbers.data(), sizeof(numbers));
    }
  }
#endif

 private:
  const uint8_t *table_, *group_;
};

// A panel of so many lines, from a group on.
class CompactPanel {
 public:
  CompactPanel(const uint8_t* panel, int64_t num_lines, int64_t first_group)
      : panel_(panel), num_listed_(num_listed_max(num_lines)) {
    places_ = reinterpret_cast<const uint32_t*>(groups() + num_groups(num_lines) * kGroupBytes);
    next_ = std::lower_bound(places_, places_ + num_listed_, static_cast<uint32_t>(first_group * kNumbersPerGroup)) - places_;
  }

  const uint8_t* groups() const { return panel_ + kLineBytes; }
  CompactGroup operator[](int64_t group) const { return {panel_, groups() + group * kGroupBytes}; }

  // The next group that has a number in the list.
  int64_t next_listed() const {
    return next_ < num_listed_ ? places_[next_] / kNumbersPerGroup : std::numeric_limits<int64_t>::max();
  }

  // The lines of a group, which none in the list comes before.
  void unpack(int64_t group, uint8_t* lines) {
    (*this)[group].unpack(lines);
    const auto* numbers = reinterpret_cast<const uint16_t*>(places_ + num_listed_);
    for (; next_listed() == group; ++next_)
      std::memcpy(lines + places_[next_] % kNumbersPerGroup * sizeof(uint16_t), &numbers[next_], sizeof(uint16_t));
  }

 private:
  static constexpr int64_t kNumbersPerGroup = kLinesPerGroup * kNumbersPerLine;

  const uint8_t* panel_;
  int64_t num_listed_;
  const uint32_t* places_;
  int64_t next_;
};

// The first rows meet each line as it is unpacked. If there are more, lines are kept, and the others multiplied with them
// as `OnLanes` does it. Either way each sum is the one of whole weights.
class OnCompact {
  using Word = PairOfNumbers;
  using On = OnLanes<Word, /*kIsFetching=*/false>;

 public:
  static constexpr bool kWantsTiles = false;
  static constexpr int64_t kRowsPerStep = On::kRowsPerStep;
  static constexpr int64_t kSumsPerStep = kRowsPerStep * 2 * kLanes;
  static constexpr int64_t kWordsAtOnce = 2048;  // of both panels a quarter of a second-level cache

  static uint8_t* place(const Rows& rows, int64_t row, int64_t word) { return On::place(rows, row, word); }

  template <typename T>
  static Rows ready(const Rows& rows, std::vector<Line>& space) {
    return On::ready<T>(rows, space);
  }

  explicit OnCompact(int64_t num_rows) : multiply_(num_rows) {}

  template <typename Put>
  void operator()(const Rows& rows, const Step& step, const Panels& panels, const Panels& next, const Part& part,
                  const Put& put) {
    if (step.row == 0)
      dispatch(rows, step, panels, next, part, put, std::make_integer_sequence<int64_t, kRowsPerStep>());
    else
      multiply_(rows, step, kept_panels(), kept_panels(),
                {part.begin, part.end, part.is_last, part.sums, part.begin}, put);
  }

  template <typename Put>
  void finish(const Put&) const {}

 private:
  static constexpr int64_t kGroupsAhead = 64;  // that are fetched before they are wanted, of each panel

  On multiply_;
  std::array<std::vector<Line>, 2> kept_;

  Panels kept_panels() const { return {kept_[0].data()->bytes, kept_[1].data()->bytes}; }

  template <typename Put, int64_t... kRows>
  void dispatch(const Rows& rows, const Step& step, const Panels& panels, const Panels& next, const Part& part,
                const Put& put, std::integer_sequence<int64_t, kRows...>) {
    using Kernel = void (OnCompact::*)(const Rows&, const Step&, const Panels&, const Panels&, const Part&, const Put&);
    static constexpr std::array<Kernel, kRowsPerStep> kernels{&OnCompact::multiply<kRows + 1, Put>...};
    (this->*kernels[step.num_rows - 1])(rows, step, panels, next, part, put);
  }

  template <int64_t kRows, typename Put>
  void multiply(const Rows& rows, const Step& step, const Panels& panels, const Panels& next, const Part& part,
                const Put& put) {
    Floats sums[kRows][2] = {};
    if (part.begin > 0) std::memcpy(sums, part.sums, sizeof(sums));
    if (rows.num_rows > kRows) {
      const size_t num_lines = num_groups(part.end - part.begin) * kLinesPerGroup;
      for (std::vector<Line>& lines : kept_)
        if (lines.size() < num_lines) lines.resize(num_lines);
      add<kRows, true>(rows, panels, next, part, sums);
    } else {
      add<kRows, false>(rows, panels, next, part, sums);
    }
    if (!part.is_last) {
      std::memcpy(part.sums, sums, sizeof(sums));
      return;
    }
    for (int64_t row = 0; row < kRows; ++row) put(step.pair, row, sums[row][0], sums[row][1]);
  }

  template <int64_t kRows, bool kKeeps>
  void add(const Rows& rows, const Panels& panels, const Panels& next, const Part& part, Floats (&all_sums)[kRows][2]) {
    Floats sums[kRows][2];
#pragma GCC unroll 12
    for (int64_t row = 0; row < kRows; ++row)
      for (int64_t side = 0; side < 2; ++side) sums[row][side] = all_sums[row][side];
    const auto add_lines = [&](int64_t k, const auto& left, const auto& right) __attribute__((always_inline)) {
#pragma GCC unroll 12
      for (int64_t row = 0; row < kRows; ++row) {
        const Word word(rows, rows.data + row * rows.row_bytes, k);
        sums[row][0] = word.added(sums[row][0], left);
        sums[row][1] = word.added(sums[row][1], right);
      }
    };
    Line* keeps[2] = {kept_[0].data(), kept_[1].data()};
    const int64_t num = num_groups(rows.num_words), last = part.end / kLinesPerGroup;
    int64_t group = part.begin / kLinesPerGroup;
    CompactPanel left(panels[0], rows.num_words, group), right(panels[1], rows.num_words, group);
    while (group * kLinesPerGroup < part.end) {
#ifdef __AVX512BF16__
      for (const int64_t stop = std::min({last, left.next_listed(), right.next_listed()}); group < stop; ++group) {
        fetch(panels, next, group, num);
        const CompactGroup on_left = left[group], on_right = right[group];
#pragma GCC unroll 4
        for (int64_t line = 0; line < kLinesPerGroup; ++line) {
          const __m512i of_left = on_left[line], of_right = on_right[line];
          if constexpr (kKeeps) {
            _mm512_store_si512(keeps[0]++, of_left);
            _mm512_store_si512(keeps[1]++, of_right);
          }
          add_lines(group * kLinesPerGroup + line, of_left, of_right);
        }
      }
      if (group * kLinesPerGroup >= part.end) break;
#endif
      fetch(panels, next, group, num);
      Line lines[2][kLinesPerGroup];
      left.unpack(group, lines[0]->bytes);
      right.unpack(group, lines[1]->bytes);
      for (int64_t k = group * kLinesPerGroup, line = 0; line < kLinesPerGroup && k < part.end; ++k, ++line)
        add_lines(k, &lines[0][line].bytes[0], &lines[1][line].bytes[0]);
      if constexpr (kKeeps)
        for (int64_t side = 0; side < 2; ++side) keeps[side] = std::copy_n(lines[side], kLinesPerGroup, keeps[side]);
      ++group;
    }
#pragma GCC unroll 12
    for (int64_t row = 0; row < kRows; ++row)
      for (int64_t side = 0; side < 2; ++side) all_sums[row][side] = sums[row][side];
  }

  // Fetches what lies `kGroupsAhead` behind a group of each panel, be it in the panel after it.
  static void fetch(const Panels& panels, const Panels& next, int64_t group, int64_t num) {
    const int64_t ahead = group + kGroupsAhead;
    for (int64_t side = 0; side < 2; ++side) {
      const uint8_t* wanted =
          ahead < num ? panels[side] + ahead * kGroupBytes : next[side] + (ahead - num) * kGroupBytes;
      for (int64_t byte = 0; byte < kGroupBytes; byte += kLineBytes) __builtin_prefetch(wanted + byte, 0, 2);
    }
  }
};

}  // namespace outrider
