// Checks tables of kernels without Python: for instruction sets that the machine at hand lacks, in an emulator.
//
// What they are compared with is the same source with vectors of one double, that is, scalars: other panels, other
// tiles, no instruction in common.  That the equations themselves are right is what the Python tests show.
//
//   cells      every row of the table, float and double: y, saved activations, dgates, the gradients of the initial
//              states, of the peepholes and of the norms; batches of 1 to 9 rows, ragged, with resets; sizes that fill
//              no vector, panel or tile; weights packed or not, input projections, one-hot inputs, projections
//   compressed the cells in float with weights in bfloat16 and int8, against scalars in float with the same
//   teams      the same to the bit, with resets and all, when a team shares the steps
//   rows       softmax with cross-entropy, optimisers, sums
//   functions  exp, tanh and sigmoid against the C library: the bounds in ULP that math.hpp states
//
// Build and run, from the root of the project (another architecture: its compiler, -static, and qemu-user):
//
// g++ -std=c++17 -O3 -pthread -Isrc/rnn/kernels tests/native/check_kernels.cpp src/rnn/kernels/*/*.cpp -o check_kernels
// ./check_kernels             every table that this machine can run
// ./check_kernels avx512      this one, whatever the machine says
// ./check_kernels --few       a third of the batches, for an emulator
//
// With -DNDEBUG left away, as here, the kernels' assertions are on; tests/test_native.py builds and runs it so.
// With -fsanitize=thread it shows that threads which share steps do not race.
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#define FASTRNN_ISA scalar
#define FASTRNN_VECTOR_BYTES 8
#define FASTRNN_REGISTERS 16
#include "isa/isa.inl"
#include "gated_average.hpp"

using namespace fastrnn;
template <class T> using Array = std::vector<T>;

constexpr Index kSteps = 4;
bool failed = false;
Index batch_step = 1;  // from a batch to the next

uint64_t random_bits() {  // splitmix64
  static uint64_t state = 0;
  uint64_t z = state += 0x9e3779b97f4a7c15;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9, z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return z ^ (z >> 31);
}

// n values in (-scale, scale) that float holds exactly
Array<double> draw(Index n, double scale = 1) {
  Array<double> out(n);
  for (double& each : out) each = float(scale * double(int64_t(random_bits()) >> 40) / (1 << 23));
  return out;
}

template <class T> Array<T> as(const Array<double>& a) { return Array<T>(a.begin(), a.end()); }

void expect(bool right, const char* what, double error) {
  std::printf("  %-44s %9.2e%s\n", what, error, right ? "" : "   WRONG");
  failed |= !right;
}

template <class T> constexpr double kTolerance = sizeof(T) == 4 ? 2e-5 : 2e-14;  // of values of order 1

// By how much more a cell's rounding may show: a norm magnifies it, over the one to four numbers of H = 1 by up to
// 1 / sqrt(eps) = 316
double magnified(bool is_normed, Index H) { return !is_normed ? 1 : H > 1 ? 5 : 50; }

// ---------------------------------------------------------------- cells

template <class T> bool can_project(const CellKernels<T>& cell) { return cell.n_states > 1 && !cell.is_normed; }

// One layer over one batch, row b of which runs for kSteps, or fewer, steps
struct Layer {
  enum Input { kStepByStep, kUnpacked, kProjected, kOneHot, kInputs } input;
  Index G, B, I, H, P;
  double scale = 1.5 / std::sqrt(double(H));
  Array<double> w_ih = draw(G * H * I, scale), w_hh = draw(G * H * P, scale), b_ih = draw(G * H), b_hh = draw(G * H),
                w_hr = draw(P * H, scale), w_p = draw(3 * H), x = draw(kSteps * B * I), h0 = draw(B * P),
                c0 = draw(B * H), dy = draw(kSteps * B * P), dh = draw(B * P), dc = draw(B * H),
                gains = draw(G * H);
  bool coupled = input == kProjected;
  Index length(Index b) const { return kSteps - b * kSteps / (B + 1); }
};

template <class T, class Pack> Array<T> packed(Sequence<T>& q, Pack pack) {
  Arena<T> arena{nullptr, 0};
  pack(q, arena);  // only counts
  Array<T> memory(arena.used);
  arena.block = memory.data(), arena.used = 0;
  pack(q, arena);
  return memory;
}

// The input projections of all rows
template <class T> Array<T> project_all(const Sequence<T>& q, const CellKernels<T>& cell) {
  Array<const T*> x;
  for (Index s = 0; s < kSteps; ++s)
    for (Index b = 0; b < q.active(s); ++b) x.push_back(q.x.at(s, b));
  Array<T> input_projection(x.size() * cell.projection_width(q.H));
  cell.project_inputs(q, x.size(), x.data(), input_projection.data());
  return input_projection;
}

// All that forward and backward of a layer write
template <class T>
Array<Array<T>> run(const CellKernels<T>& cell, const Layer& m, Team* team = nullptr,
                    Storage storage = kFull) {
  const Index B = m.B, I = m.I, H = m.H, P = m.P, width = m.G * H;
  Array<int64_t> start{0}, x_at, y_at, ids, each_row;
  Array<uint8_t> reset;
  for (Index b = 0; b < B; ++b) x_at.push_back(b * I), y_at.push_back(b * P), each_row.push_back(b);
  for (Index s = 0; s < kSteps; ++s) {
    start.push_back(start.back());
    for (Index b = 0; b < B; ++b) start.back() += s < m.length(b), reset.push_back((3 * s + 5 * b) % 7 == 1);
    for (Index b = 0; b < B; ++b) ids.push_back((7 * s + b) % I);
  }
  const bool norms = cell.is_normed;
  const Index rows = start.back(), saved_width = (cell.saved_width + (P != H)) * H + norms * kNormStatistics;
  const Array<T> w_ih = as<T>(m.w_ih), w_hh = as<T>(m.w_hh), b_ih = as<T>(m.b_ih), b_hh = as<T>(m.b_hh),
                 w_hr = as<T>(m.w_hr), w_p = as<T>(m.w_p), x = as<T>(m.x), h0 = as<T>(m.h0), c0 = as<T>(m.c0),
                 dy = as<T>(m.dy), gains = as<T>(m.gains), zeros(H > P ? H : P);
  Array<T> y(kSteps * B * P), c(rows * H), saved(rows * saved_width), dgates(rows * cell.dgates_width * H),
      dprojected(rows * P), dh = as<T>(m.dh), dc = as<T>(m.dc), dpeephole(3 * H), x_fixed(B * fixed_size(I)),
      h_fixed(B * fixed_size(P)), dgains(2 * width + 2 * H), sums(cell.dgates_width * H);

  Sequence<T> q{};
  q.T_ = kSteps, q.B = B, q.I = I, q.H = H, q.P = P, q.C = (cell.n_states - 1) * H, q.start = start.data();
  q.saved_width = saved_width, q.dgates_width = cell.dgates_width * H;
  const auto padded = [](auto* base, const int64_t* at, int64_t step) {
    return Rows<std::remove_pointer_t<decltype(base)>>{base, at, step, nullptr, nullptr};
  };
  q.x = padded(x.data(), x_at.data(), B * I), q.y = padded(y.data(), y_at.data(), B * P);
  q.dy = padded(std::as_const(dy).data(), y_at.data(), B * P);
  const Rows<const int64_t> indices{m.input == Layer::kOneHot ? ids.data() : nullptr, each_row.data(), B, nullptr,
                                    nullptr};
  if (storage == kFull) q.ids = indices;  // a stream packs W_ih before it knows of indices
  q.packs_input = q.packs_state = m.input != Layer::kUnpacked;
  q.storage = storage, q.x_fixed = x_fixed.data(), q.h_fixed = h_fixed.data();
  q.reset = {reset.data(), each_row.data(), B, nullptr, nullptr};
  q.h0 = h0.data(), q.c0 = c0.data(), q.zeros = zeros.data(), q.c = c.data(), q.saved = saved.data();
  bool has_hh = false;
  for (int i = 0; i < cell.n_blocks; ++i) has_hh |= cell.blocks[i].weight == GradientBlock::kHH;
  q.weights = {w_ih.data(), has_hh ? w_hh.data() : nullptr, b_ih.data(), b_hh.data(), P == H ? nullptr : w_hr.data(), nullptr};
  if (norms) {
    T* d = dgains.data();
    q.norms = {gains.data(), gains.data(), gains.data(), b_ih.data()}, q.sums = sums.data();
    q.dnorms = {d, d + width, d + 2 * width, d + 2 * width + H};
  }
  q.clip = q.grad_clip = std::numeric_limits<T>::infinity();
  if (cell.is_general) {
    q.activation[0] = {kSigmoid, 0, 0}, q.activation[1] = {kSoftplus, 0, 0};
    q.activation[2] = {kScaledTanh, 1.7, 0.7};
    q.clip = T(1.5), q.weights.peephole = w_p.data(), q.coupled = m.coupled;
  }
  q.dh = dh.data(), q.dc = dc.data(), q.dgates = dgates.data(), q.dprojected = dprojected.data();
  q.dpeephole = dpeephole.data();
  {
    const Array<T> memory = packed(q, cell.forward[storage].pack);
    q.ids = indices;
    const bool projects = m.input == Layer::kProjected || m.input == Layer::kUnpacked;
    const Array<T> input_projection = projects ? project_all(q, cell) : Array<T>();
    if (!input_projection.empty()) q.input_projection = input_projection.data();
    for (Index s = 0; s < kSteps; ++s) run_step(team, q, cell.forward[storage].step, s);
  }
  const Array<T> memory = packed(q, cell.pack_backward);
  for (Index s = kSteps - 1; s >= 0; --s) run_step(team, q, cell.backward, s);
  cell.backward(q, -1);
  return {y, saved, c, dgates, dprojected, dh, dc, dpeephole, dgains, sums};
}

// The largest difference, relative where values exceed 1; infinite where only one is NaN
template <class T> double difference(const Array<T>& ours, const Array<double>& theirs) {
  double worst = 0;
  for (size_t i = 0; i < theirs.size(); ++i) {
    const double d = std::fabs(double(ours[i]) - theirs[i]) / (1 + std::fabs(theirs[i]));
    if (!(d <= worst)) worst = std::isnan(d) ? INFINITY : d;
  }
  return worst;
}

template <class T> void check_cells(const Kernels<T>& kernels) {
  for (int row = 0; row < kCells; ++row) {
    const CellKernels<T>& cell = *kernels.cell(row);
    double worst = 0;
    for (Index H : {1, 5, 16, 33, 70})
      for (Index B = 1; B <= 9; B += batch_step)
        for (int input = 0; input < Layer::kInputs; ++input)
          for (Index P : {H, (H + 1) / 2}) {
            if (P != H && (!can_project(cell) || H == 1)) continue;
            const Layer layer{Layer::Input(input), cell.gates, B, H / 2 + 3, H, P};
            const auto ours = run(cell, layer);
            Layer plain = layer;
            if (input == Layer::kProjected) plain.input = Layer::kStepByStep;
            const auto theirs = run(*scalar::table.f64.cell(row), plain);
            for (size_t i = 0; i < ours.size(); ++i)
              worst = std::fmax(worst, difference(ours[i], theirs[i]) / magnified(cell.is_normed, H));
          }
    expect(worst <= kTolerance<T>, cell.names.row, worst);
  }
}

// Streams' weights: both round them by the same operations, so what differs is the order of sums
void check_compressed(const KernelTable& table) {
  for (Storage storage : {kBfloat16, kInt8}) {
    double worst = 0;
    for (int row = 0; row < kCells; ++row)
      for (Index H : {1, 5, 16, 33, 70})
        for (Index B = 1; B <= 9; B += batch_step)
          for (auto input : {Layer::kStepByStep, Layer::kOneHot}) {
            const CellKernels<float>& cell = *table.f32.cell(row);
            const Layer layer{input, cell.gates, B, H / 2 + 3, H, H};
            const auto ours = run(cell, layer, nullptr, storage);
            const auto theirs = run(*scalar::table.f32.cell(row), layer, nullptr, storage);
            for (size_t i = 0; i < ours.size(); ++i)
              worst = std::fmax(worst, difference(ours[i], Array<double>(theirs[i].begin(), theirs[i].end())) /
                                           magnified(cell.is_normed, H));
          }
    expect(worst <= kTolerance<float>, storage == kInt8 ? "int8" : "bfloat16", worst);
  }
}

// ---------------------------------------------------------------- teams

// work(team), with workers that join before it starts or while it runs
template <class Work> auto with_workers(int workers, bool from_the_start, Work work) {
  Team team{};
  team.places = workers;
  Array<std::thread> threads;
  for (int i = 0; i < workers + 1; ++i) threads.emplace_back(serve, &team);  // one too many
  if (from_the_start) wait([&] { return joined(__atomic_load_n(&team.call, __ATOMIC_RELAXED)) == workers; });
  const auto result = work(&team);
  shut_down(&team);
  for (std::thread& each : threads) each.join();
  return result;
}

template <class T> void check_teams(const Kernels<T>& kernels) {
  Index wrong = 0;
  for (const CellKernels<T>& cell : kernels.cells)
    for (Index H : {5, 70, 200})
      for (int input = 0; input < Layer::kInputs; ++input)
        for (Index P : {H, (H + 1) / 2}) {
          if (cell.is_normed || (P != H && !can_project(cell))) continue;  // with norms, steps are not shared
          const Layer layer{Layer::Input(input), cell.gates, 3, H / 2 + 3, H, P};
          const auto alone = run(cell, layer);
          for (int workers = 1; workers < 4; ++workers)
            for (bool from_the_start : {true, false})
              wrong += alone != with_workers(workers, from_the_start, [&](Team* team) {
                return run(cell, layer, team);
              });
        }
  expect(wrong == 0, "steps shared by threads", double(wrong));
}

// A cell whose step has no product of the state, against its formulas
template <class T> void check_gated_average() {
  const CellKernels<T> cell = scalar::gated_average<T>();
  double worst = 0;
  for (Index H : {1, 5, 33})
    for (Index B : {1, 3, 7})
      for (auto input : {Layer::kStepByStep, Layer::kUnpacked, Layer::kOneHot}) {
        const Layer m{input, 2, B, H / 2 + 3, H, H};
        const auto ours = run(cell, m);
        Array<double> y(kSteps * B * H), dh(B * H);
        for (Index b = 0; b < B; ++b)
          for (Index u = 0; u < H; ++u) {
            Array<double> z(kSteps), n(kSteps), before(kSteps);
            const auto at = [&](Index s) { return (s * B + b) * H + u; };
            const auto is_reset = [&](Index s) { return (3 * s + 5 * b) % 7 == 1; };
            for (Index s = 0; s < m.length(b); ++s) {
              double a[2];
              for (Index g = 0; g < 2; ++g) {
                a[g] = m.b_ih[g * H + u] + m.b_hh[g * H + u];
                const double* w = &m.w_ih[(g * H + u) * m.I];
                for (Index i = 0; i < m.I; ++i)
                  a[g] += w[i] * (input == Layer::kOneHot ? double(i == (7 * s + b) % m.I) : m.x[(s * B + b) * m.I + i]);
              }
              z[s] = 1 / (1 + std::exp(-a[0])), n[s] = std::tanh(a[1]);
              before[s] = is_reset(s) ? 0 : s ? y[at(s - 1)] : m.h0[b * H + u];
              y[at(s)] = n[s] + z[s] * (before[s] - n[s]);
            }
            double d = m.dh[b * H + u];
            for (Index s = m.length(b) - 1; s >= 0; --s) d = is_reset(s) ? 0 : (d + m.dy[at(s)]) * z[s];
            dh[b * H + u] = d;
          }
        worst = std::fmax(worst, std::fmax(difference(ours[0], y), difference(ours[5], dh)));
      }
  expect(worst <= kTolerance<T>, "no product of the state", worst);
}

// A worker that keeps the master waiting is sent away, and teams back off
void check_patience() {
  struct Job {
    Index calls = 0, shared = 0;
    static void make(Job* const* job, WorkShare* share) {
      if (share && share->index > 0) return std::this_thread::sleep_for(std::chrono::nanoseconds(2 * kPatience));
      ++(*job)->calls, (*job)->shared += share != nullptr;
    }
  } job;
  const bool rested = Backoff::now();
  with_workers(1, true, [&](Team* team) {
    for (int i = 0; i < 3; ++i) run_shared<Job*>(team, Job::make, &job);
    return 0;
  });
  expect(!rested && Backoff::now() && job.calls == 3 && job.shared == 1, "who keeps others waiting is sent away", 0);
  Backoff::after(5 * kPatience, kPatience / 2);
  expect(!Backoff::after(0, kPatience / 2) && Backoff::after(0, kPatience), "unless their work pays for it", 0);
}

// ---------------------------------------------------------------- rows

template <class T> Array<Array<T>> run_rows(const Kernels<T>& k, Index rows, Index n, const Array<double>& values) {
  Array<T> a = as<T>(values), d(rows * n), sums(n, T(0.5));
  Array<int64_t> targets;
  for (Index r = 0; r < rows; ++r) targets.push_back(r % 4 == 3 ? -1 : r * 5 % n);
  const T loss = T(k.softmax_cross_entropy(rows, n, a.data(), targets.data(), T(0.25), d.data()));
  k.sum_rows(rows, n, a.data(), n, sums.data());
  return {{loss / rows, T(k.sum_of_squares(rows * n, a.data()) / (rows * n))}, d, sums};
}

// Each optimiser with and without its buffers: parameters and buffers after a step
template <class T> Array<Array<T>> run_optimisers(const Kernels<T>& k, Index n, const Array<double>& values) {
  const Array<T> g = as<T>(values);
  Array<Array<T>> results;
  const auto step = [&](auto optimiser) {
    Array<T> m(n, T(0.1)), v(n, T(0.2)), buffer(n, T(-0.4)), parameter(n, T(0.3));
    optimiser(m.data(), v.data(), buffer.data(), parameter.data());
    for (const auto& each : {m, v, buffer, parameter}) results.push_back(each);
  };
  for (bool nesterov : {false, true})
    step([&](T*, T*, T* b, T* p) { k.sgd(n, T(0.5), T(0.1), T(0.01), T(0.9), T(0.8), nesterov, g.data(), b, p); });
  step([&](T*, T*, T*, T* p) { k.sgd(n, T(0.5), T(0.1), T(0.01), T(0), T(1), false, g.data(), nullptr, p); });
  step([&](T* m, T* v, T*, T* p) {
    k.adam(n, T(0.5), T(0.1), T(0.99), T(0.9), T(0.99), T(0.01), T(0.7), T(1e-6), g.data(), m, v, p);
  });
  for (bool buffers : {false, true})
    step([&](T* m, T* v, T* b, T* p) {
      k.rmsprop(n, T(0.5), T(0.1), T(0.01), T(0.9), T(1e-6), T(0.9), g.data(), v, buffers ? m : nullptr,
                buffers ? b : nullptr, p);
    });
  return results;
}

// Gradients of the weights and of x, for `rows` rows of 2n dgates and n inputs
template <class T>
Array<Array<T>> run_gradients(const Kernels<T>& k, Index rows, Index n, const Array<double>& values) {
  const Array<T> d = as<T>(values), w(d.begin(), d.begin() + 2 * n * n), zeros(n + 64);  // whole vectors are read
  Array<T> dw(2 * n * n, T(0.5)), dx(rows * n), panel(kGradientPanel);
  Array<const T*> sources;
  Array<T*> targets;
  for (Index r = 0; r < rows; ++r) sources.push_back(&d[(rows - 1 - r) * 2 * n]), targets.push_back(&dx[r * n]);
  k.weight_gradient(nullptr, rows, 2 * n, n, d.data(), 2 * n, sources.data(), panel.data(), dw.data());
  InputColumns<T> c{{n - n / 3, n / 3}, {n / 3, 0}, {0, n - n / 3}, {}};
  Array<T> panels(k.pack_input_gradient(c, n, w.data(), nullptr));
  k.pack_input_gradient(c, n, w.data(), panels.data());
  k.input_gradient(nullptr, rows, n, c, d.data(), 2 * n, zeros.data(), targets.data());
  return {dw, dx};
}

template <class T> void check_rows(const Kernels<T>& kernels) {
  double worst = 0;
  for (Index n : {1, 3, 16, 50, 131}) {
    const Array<double> values = draw(6 * n, 4);
    auto ours = run_rows(kernels, 6, n, values);
    auto theirs = run_rows(scalar::table.f64, 6, n, values);
    for (const auto& each : run_optimisers(kernels, n, values)) ours.push_back(each);
    for (const auto& each : run_optimisers(scalar::table.f64, n, values)) theirs.push_back(each);
    for (size_t i = 0; i < ours.size(); ++i) worst = std::fmax(worst, difference(ours[i], theirs[i]));
  }
  expect(worst <= kTolerance<T>, "softmax with cross-entropy, optimisers, sums", worst);
  worst = 0;
  for (Index n : {3, 16, 50, 131})
    for (Index rows : {1, 7, 300}) {
      const Array<double> values = draw(2 * n * (rows > n ? rows : n), 2 / std::sqrt(double(n + rows)));
      const auto ours = run_gradients(kernels, rows, n, values);
      const auto theirs = run_gradients(scalar::table.f64, rows, n, values);
      for (size_t i = 0; i < ours.size(); ++i) worst = std::fmax(worst, difference(ours[i], theirs[i]));
    }
  expect(worst <= kTolerance<T>, "gradients of weights and inputs", worst);
}

// ---------------------------------------------------------------- functions

// Every 4999th bit pattern in [low, high] (of double: drawn ones, and numbers of order 1), by a type wider than T
template <class T, class Wide> void check_function(const char* name, void (*f)(Index, const T*, T*),
                                                   Wide (*exact)(Wide), double low, double high, double bound) {
  Array<T> x;
  for (uint64_t bits = 0; bits < uint64_t(1) << 32; bits += 4999) {
    const uint64_t drawn = random_bits();
    T value = T(25 * double(int64_t(drawn)) / 9.3e18);
    if (sizeof(T) == 4 || bits % 2) std::memcpy(&value, sizeof(T) == 4 ? &bits : &drawn, sizeof value);
    if (value >= low && value <= high) x.push_back(value);
  }
  Array<T> y(x.size());
  f(Index(x.size()), x.data(), y.data());
  double worst = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    const Wide value = exact(Wide(x[i]));
    const T near = std::fabs(T(value));
    const double error = double(std::fabs(Wide(y[i]) - value) / (std::nextafter(near, T(INFINITY)) - near));
    if (!(error <= worst)) worst = std::isnan(error) ? INFINITY : error;
  }
  expect(worst <= bound, name, worst);
}

template <class T, class Wide> void check_functions(const Kernels<T>& k) {
  using Limits = std::numeric_limits<T>;
  const double infinite = INFINITY, low = std::log(double(Limits::min()));
  const double high = std::log(double(Limits::max())) - std::log(2.0) / 2;
  check_function<T, Wide>("exp, ULP", k.exp, [](Wide x) { return std::exp(x); }, low, high, 1.5);
  check_function<T, Wide>("tanh, ULP", k.tanh, [](Wide x) { return std::tanh(x); }, -infinite, infinite, 2);
  check_function<T, Wide>("sigmoid, ULP", k.sigmoid, [](Wide x) { return 1 / (1 + std::exp(-x)); }, low, infinite, 2.5);
  const T ends[] = {T(-INFINITY), T(INFINITY), T(NAN)};
  T e[3], t[3], s[3];
  k.exp(3, ends, e), k.tanh(3, ends, t), k.sigmoid(3, ends, s);
  expect(e[0] == 0 && e[1] == T(INFINITY) && t[0] == -1 && t[1] == 1 && s[0] < 2 * Limits::min() && s[1] == 1 &&
             std::isnan(e[2]) && std::isnan(t[2]) && std::isnan(s[2]), "at infinity and NaN", 0);
}

int main(int count, char** names) {
  Array<const char*> tables;
  for (int i = 1; i < count; ++i)
    if (std::strcmp(names[i], "--few")) tables.push_back(names[i]);
    else batch_step = 3;
  const auto is_wanted = [&](const KernelSet* set) {
    bool wanted = tables.empty() && set->runs;
    for (const char* name : tables) wanted |= !std::strcmp(name, set->table->name);
    return wanted;
  };
  for (const KernelSet* set = kernel_sets(); set->table; ++set) {
    const bool wanted = is_wanted(set);
    std::printf("%s%s\n", set->table->name, wanted ? "" : ": not run");
    if (!wanted) continue;
    std::puts(" float"), check_cells(set->table->f32), check_compressed(*set->table), check_rows(set->table->f32);
    check_functions<float, double>(set->table->f32);
    std::puts(" double"), check_cells(set->table->f64), check_rows(set->table->f64);
    check_functions<double, long double>(set->table->f64);
    std::fflush(stdout);
  }
  std::puts("teams");
  check_gated_average<float>(), check_gated_average<double>();
  check_patience();
  for (const KernelSet* set = kernel_sets(); set->table; ++set)
    if (is_wanted(set)) check_teams(set->table->f32), check_teams(set->table->f64);
  std::puts(failed ? "FAILED" : "passed");
  return failed;
}
