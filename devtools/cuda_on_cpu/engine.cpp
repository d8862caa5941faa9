// The engine: runs the threads of a launch as fibers on one thread of the process.
//
// A fiber runs until it waits: at a barrier, in a warp's collective, or for another thread (`idle`). Blocks run one
// after another, or, in a cooperative launch, all together. Compiled without -fsanitize=thread; with -DCHECKED it is
// linked with code that has it, and checks each access (checker.h).
#include "engine.h"

#include <link.h>

#include <algorithm>
#include <random>
#ifdef __SSE__
#include <xmmintrin.h>
#endif

#include "checker.h"
#include "state.h"

namespace cuda_on_cpu {

#ifdef CHECKED
constexpr bool CHECKING = true;
#else
constexpr bool CHECKING = false;
#endif

constexpr int FRUITLESS_ROUNDS = 1000;  // of all threads, none of which changes anything: a deadlock

static Fiber scheduler;
static std::minstd_rand random_numbers;
static void (*entry)(void*);
static void* entry_argument;
static bool progressed;

uint3 thread_index() { return self->index; }
uint3 block_index() { return here->index; }
dim3 block_shape() { return {launch.block[0], launch.block[1], launch.block[2]}; }
dim3 grid_shape() { return {launch.grid[0], launch.grid[1], launch.grid[2]}; }
void* dynamic_shared() { return here ? here->dynamic.data() : nullptr; }
bool is_shared(const void* address) {
    const char* p = static_cast<const char*>(address);
    if (p >= statics && p < statics + statics_size) return true;
    return p >= here->dynamic.data() && p < here->dynamic.data() + here->dynamic.size();
}

// --- threads

static void leave() { switch_fiber(self->fiber, scheduler); }

static bool comes_later(unsigned a, unsigned b) { return launch.policy == 1 ? a < b : a > b; }

static void make_ready(Block& b, unsigned id) {
    b.threads[id].state = State::READY;
    b.ready.push_back(id);
    if (launch.policy < 2) std::push_heap(b.ready.begin(), b.ready.end(), comes_later);
}

static unsigned take_ready(Block& b) {
    if (launch.policy < 2) {
        std::pop_heap(b.ready.begin(), b.ready.end(), comes_later);
    } else {
        std::swap(b.ready[random_numbers() % b.ready.size()], b.ready.back());
    }
    const unsigned id = b.ready.back();
    b.ready.pop_back();
    return id;
}

void stop() {
    for (;;) leave();
}

void fail_at(const char* what, Site site) {
    fail(what + (" by " + who()) + " at " + at(site));
    stop();
}

void progress() { progressed = true; }

void idle(Site site) {
    // In a random order a thread looks again at once now and then, before the others have come to where they wait: a
    // wait for too little shows only then.
    if (launch.policy >= 2 && random_numbers() % 2) return;
    self->site = site;
    here->resting.push_back(self->id);
    leave();
}

// A thread that polls loads at once, and rests. When no thread can run, first those go on whose number has changed since:
// they load it anew, or have been content with less. Then the others do, together, so that none of them sees what another
// has done after their meeting. Both ways a thread knows as little as it may: what is missing shows in every schedule.
unsigned poll(const unsigned* p, Site site) {
    Thread* t = self;
    if (reinterpret_cast<uintptr_t>(p) % sizeof *p) fail_at("misaligned atomic", site);
    if constexpr (CHECKING) check_poll(p, sizeof *p, site);
    const unsigned value = *p;
    t->polled = p;
    t->loaded = value;
    idle(site);
    t->polled = nullptr;
    t->just_polled = true;
    return value;
}

static bool outdated(const Thread& t) { return t.polled && *t.polled != t.loaded; }

void sleep(Site site) {
    if (!self->just_polled) idle(site);
    self->just_polled = false;
}

void fence() {
    if constexpr (CHECKING) check_fence();
}

void before_atomic(const void* p, unsigned size, Access access, Order order, Site site) {
    if (reinterpret_cast<uintptr_t>(p) % size) fail_at("misaligned atomic", site);
    if constexpr (CHECKING) check_atomic(p, size, access, order, site);
}

// --- barriers

static void try_barrier() {  // after an arrival or a return
    Block& b = *here;
    if (b.waiting == 0 || b.waiting < b.alive) return;
    const Thread* first = nullptr;
    int all = 1, count = 0;
    for (const Thread& t : b.threads) {
        if (t.state != State::AT_BARRIER) continue;
        if (!first) first = &t;
        if (t.site.line != first->site.line || std::strcmp(t.site.file, first->site.file) != 0)
            fail("divergent __syncthreads: " + at(first->site) + " and " + at(t.site));
        all &= t.argument != 0;
        count += t.argument != 0;
    }
    if (b.alive < b.threads.size())
        fail("__syncthreads at " + at(first->site) + " after some threads of block " + std::to_string(b.id) + " have returned");
    if constexpr (CHECKING) {
        check_met(b.threads.data(), b.threads.size(), [](const Thread& t) { return t.state == State::AT_BARRIER; });
        b.synced = now;
    }
    for (Thread& t : b.threads) {
        if (t.state != State::AT_BARRIER) continue;
        t.argument = t.op == Collective::COUNT ? count : t.op == Collective::AND ? all : count > 0;
        make_ready(b, t.id);
    }
    b.waiting = 0;
    progressed = true;
}

int barrier(Collective op, int value, Site site) {
    Thread* t = self;
    t->state = State::AT_BARRIER;
    t->op = op;
    t->argument = value;
    t->site = site;
    ++here->waiting;
    try_barrier();
    leave();
    return t->argument;
}

// --- warps

// The value that lane j of those in `met` gets from a shuffle. From a lane that takes no part: undefined, NaN's bits.
static uint64_t shuffled(const Thread* lanes, unsigned met, unsigned j) {
    const Thread& t = lanes[j];
    const int low = int(j) & ~(t.width - 1), high = low + t.width, by = t.argument;
    int from = int(j);
    if (t.op == Collective::SHUFFLE) from = low + (by & (t.width - 1));
    if (t.op == Collective::SHUFFLE_UP && from - by >= low) from -= by;
    if (t.op == Collective::SHUFFLE_DOWN && from + by < high) from += by;
    if (t.op == Collective::SHUFFLE_XOR && (from ^ by) < high) from ^= by;
    return met >> from & 1 ? lanes[from].in : ~uint64_t(0);
}

// Let the lanes go on that wait together with lane i, if all of them are there. A lane that has returned is not waited
// for: CUDA asks only for "all non-exited threads named in mask".
static void try_lane(Block& b, Thread* lanes, unsigned n, unsigned i) {
    const Thread first = lanes[i];
    unsigned met = 0;
    for (unsigned j = 0; j < n; ++j) {
        const Thread& t = lanes[j];
        if (!(first.mask >> j & 1) || t.state == State::DONE) continue;
        if (t.state != State::AT_WARP) return;
        if (t.mask != first.mask || t.op != first.op || t.site.line != first.site.line ||
            std::strcmp(t.site.file, first.site.file) != 0) {
            fail("divergent warp collective: " + at(first.site) + " and " + at(t.site));
            return;
        }
        met |= 1u << j;
    }
    uint64_t votes = 0;
    for (unsigned j = 0; j < n; ++j)
        if (met >> j & 1) votes |= uint64_t(lanes[j].in & 1) << j;
    for (unsigned j = 0; j < n; ++j)
        if (met >> j & 1) lanes[j].out = first.op == Collective::BALLOT ? votes : shuffled(lanes, met, j);
    if constexpr (CHECKING) {
        if (first.op == Collective::SYNCWARP) check_lanes_met(lanes, n, met);
    }
    for (unsigned j = 0; j < n; ++j)
        if (met >> j & 1) make_ready(b, lanes[j].id);
    progressed = true;
}

static void try_warp(unsigned warp, unsigned from, unsigned to) {
    Block& b = *here;
    Thread* lanes = &b.threads[warp * 32];
    const unsigned n = unsigned(std::min<size_t>(32, block_threads - warp * 32));
    for (unsigned i = from; i < std::min(to, n); ++i)
        if (lanes[i].state == State::AT_WARP) try_lane(b, lanes, n, i);
}

uint64_t warp(Collective op, unsigned mask, uint64_t value, int argument, int width, Site site) {
    Thread* t = self;
    if (!(mask >> t->lane & 1)) fail_at("a lane is not in the mask that it passes", site);
    if (width < 1 || width > 32 || (width & (width - 1))) fail_at("the width of a shuffle is no power of 2 up to 32", site);
    t->state = State::AT_WARP;
    t->op = op;
    t->mask = mask;
    t->in = value;
    t->argument = argument;
    t->width = width;
    t->site = site;
    try_warp(t->id / 32, t->lane, t->lane + 1);
    leave();
    return t->out;
}

// --- blocks

static void thread_main() {
    entry(entry_argument);
    self->state = State::DONE;
    --here->alive;
    progressed = true;
    try_barrier();
    try_warp(self->id / 32, 0, 32);
    stop();
}

// What is read before it is written shows up as NaN.
static void begin(Block& b, unsigned id, size_t first_stack) {
    const Launch& l = launch;
    b.id = id;
    b.index = {id % l.grid[0], id / l.grid[0] % l.grid[1], id / (l.grid[0] * l.grid[1])};
    b.alive = unsigned(block_threads);
    b.waiting = 0;
    b.synced = now;
    b.threads.assign(block_threads, Thread{});
    b.ready.clear(), b.resting.clear();
    b.dynamic.assign(l.shared, char(0xff));
    if (l.cooperative) {
        b.statics.assign(statics_size, char(0xff));
    } else if (statics) {
        std::memset(statics, 0xff, statics_size);
    }
    if constexpr (CHECKING) check_block_begins(b);
    for (unsigned i = 0; i < block_threads; ++i) {
        Thread& t = b.threads[i];
        t.index = {i % l.block[0], i / l.block[0] % l.block[1], i / (l.block[0] * l.block[1])};
        t.id = i;
        t.lane = i % 32;
        t.time = now;
        t.stack = stack_number(first_stack + i);
        make_fiber(t.fiber, t.stack, thread_main);
        make_ready(b, i);
    }
}

static void enter(Block& b) {
    if (here == &b) return;
    if (launch.cooperative && statics) {
        if (here) std::memcpy(here->statics.data(), statics, statics_size);
        std::memcpy(statics, b.statics.data(), statics_size);
    }
    here = &b;
    last_hit = nullptr;
}

// Run the block's threads until all of them wait. A random schedule may turn to another block before.
static void run_ready(Block& b) {
    enter(b);
    while (!b.ready.empty() && error.empty()) {
        self = &b.threads[take_ready(b)];
        accesses_left = MANY_ACCESSES;
        switch_fiber(scheduler, self->fiber);
        self = nullptr;
        if (launch.cooperative && launch.policy >= 2 && random_numbers() % 32 == 0) return;
    }
}

static void report_deadlock() {
    for (const Block& b : blocks) {
        for (const Thread& t : b.threads) {
            if (t.state == State::DONE) continue;
            const bool rests = t.state == State::READY;
            fail("deadlock: thread " + std::to_string(t.id) + " of block " + std::to_string(b.id) + " waits at " +
                 at(t.site) + (rests && !launch.cooperative ? " (only in a cooperative launch do blocks run together)" : ""));
            return;
        }
    }
}

// Let resting threads go on: only those that `outdated` picks, or all. Says whether there were any.
static bool wake_resting(bool only_outdated) {
    bool any = false;
    for (Block& b : blocks) {
        if (b.resting.empty()) continue;
        enter(b);
        std::vector<unsigned> rest;
        for (unsigned id : b.resting) {
            if (only_outdated && !outdated(b.threads[id])) {
                rest.push_back(id);
            } else {
                make_ready(b, id);
                any = true;
            }
        }
        b.resting.swap(rest);
    }
    return any;
}

static void run_blocks() {
    int fruitless = 0;
    std::vector<Block*> order;
    for (Block& b : blocks) order.push_back(&b);
    if (launch.policy == 1) std::reverse(order.begin(), order.end());
    while (error.empty()) {
        bool ran = false;
        if (launch.policy >= 2) std::shuffle(order.begin(), order.end(), random_numbers);
        for (Block* b : order) {
            if (b->ready.empty()) continue;
            run_ready(*b);
            ran = true;
        }
        if (ran) continue;
        const bool resting = wake_resting(true) || wake_resting(false);
        fruitless = progressed ? 0 : fruitless + 1;
        progressed = false;
        if (!resting || fruitless > FRUITLESS_ROUNDS) break;
    }
    report_deadlock();
}

// --- launches

static thread_local volatile char anchor;  // touched first: memory for a thread's locals is made at the first use

static void find_module() {
    anchor = 1;
    auto look = [](dl_phdr_info* info, size_t, void*) {
        char *low = nullptr, *high = nullptr;
        size_t locals = 0;
        for (int i = 0; i < info->dlpi_phnum; ++i) {
            const auto& header = info->dlpi_phdr[i];
            char* start = reinterpret_cast<char*>(info->dlpi_addr + header.p_vaddr);
            if (header.p_type == PT_LOAD) {
                low = low ? std::min(low, start) : start;
                high = std::max(high, start + header.p_memsz);
            }
            if (header.p_type == PT_TLS) locals = header.p_memsz;
        }
        char* mine = reinterpret_cast<char*>(&self);
        if (mine < low || mine >= high) return 0;
        image_low = low, image_high = high;
        statics = static_cast<char*>(info->dlpi_tls_data);
        statics_size = statics ? locals : 0;
        return 1;
    };
    dl_iterate_phdr(look, nullptr);
}

static std::string described(const char* kinds, const size_t* sizes) {
    std::string text;
    for (size_t i = 0; kinds[i]; ++i) text += (i ? " " : "") + std::string(1, kinds[i]) + std::to_string(sizes[i]);
    return text;
}

#ifdef __SSE__
static unsigned read_control() { return _mm_getcsr(); }
static void write_control(unsigned value) { _mm_setcsr(value); }
constexpr unsigned FLUSH = 0x8040;  // results and operands
#elif defined(__aarch64__)
static uint64_t read_control() {
    uint64_t value;
    asm volatile("mrs %0, fpcr" : "=r"(value));
    return value;
}
static void write_control(uint64_t value) { asm volatile("msr fpcr, %0" : : "r"(value)); }
constexpr uint64_t FLUSH = uint64_t(1) << 24;
#endif

const char* run(const Launch& given, const Signature& wanted, void (*function)(void*), void* argument) {
    launch = given;
    error.clear();
    const std::string have = described(launch.kinds, launch.sizes), want = described(wanted.kinds, wanted.sizes);
    if (have != want) fail("arguments are '" + have + "', the kernel takes '" + want + "'");
    block_threads = size_t(launch.block[0]) * launch.block[1] * launch.block[2];
    entry = function;
    entry_argument = argument;
    random_numbers.seed(unsigned(launch.policy) + 1);
    now = 1;
    here = nullptr, self = nullptr;
    progressed = false;
    find_module();

    const auto control = read_control();
    write_control(launch.flush ? control | FLUSH : control & ~FLUSH);
    const unsigned count = block_count();
    if (launch.cooperative) {
        blocks.resize(count);
        for (unsigned i = 0; i < count; ++i) begin(blocks[i], i, i * block_threads);
        if (error.empty()) run_blocks();
    } else {
        std::vector<unsigned> order(count);
        for (unsigned i = 0; i < count; ++i) order[i] = launch.policy == 1 ? count - 1 - i : i;
        if (launch.policy >= 2) std::shuffle(order.begin(), order.end(), random_numbers);
        blocks.resize(1);
        for (unsigned i : order) {
            if (!error.empty()) break;
            begin(blocks[0], i, 0);
            run_blocks();
        }
    }
    write_control(control);
    blocks.clear();
    here = nullptr;
    if constexpr (CHECKING) check_launch_ends();
    return error.c_str();
}

}  // namespace cuda_on_cpu

// --- what Python and the compiler call

#pragma GCC visibility push(default)
extern "C" {

void cuda_on_cpu_array(char* low, size_t bytes, int writable, const char* name) {  // before a launch that may touch it
    if (bytes) cuda_on_cpu::add_array(low, bytes, writable, name);
}

void cuda_on_cpu_shared_variable(size_t offset, size_t bytes, const char* name) {
    cuda_on_cpu::shared_variables.push_back({offset, bytes, name});
}

int cuda_on_cpu_has_shared_variables() { return !cuda_on_cpu::shared_variables.empty(); }

#ifdef CHECKED

struct UbsanPlace {
    const char* file;
    uint32_t line, column;
};

void __ubsan_handle_type_mismatch_v1_abort(UbsanPlace* place, void*) {
    cuda_on_cpu::fail_at("misaligned or null pointer used", {place->file, int(place->line)});
}
void __ubsan_handle_out_of_bounds_abort(UbsanPlace* place, void* index) {
    const std::string what = "index " + std::to_string(reinterpret_cast<intptr_t>(index)) + " out of bounds";
    cuda_on_cpu::fail_at(what.c_str(), {place->file, int(place->line)});
}

#define CODE {__builtin_return_address(0), {"", 0}}
#define HOOKS(size)                                                                                  \
    void __tsan_read##size(void* p) { cuda_on_cpu::check(p, size, false, false, CODE); }             \
    void __tsan_write##size(void* p) { cuda_on_cpu::check(p, size, true, false, CODE); }             \
    void __tsan_unaligned_read##size(void* p) { cuda_on_cpu::check(p, size, false, false, CODE); }   \
    void __tsan_unaligned_write##size(void* p) { cuda_on_cpu::check(p, size, true, false, CODE); }
HOOKS(1)
HOOKS(2)
HOOKS(4)
HOOKS(8)
HOOKS(16)
void __tsan_read_range(void* p, size_t size) { cuda_on_cpu::check(p, unsigned(size), false, false, CODE); }
void __tsan_write_range(void* p, size_t size) { cuda_on_cpu::check(p, unsigned(size), true, false, CODE); }
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}

#endif
}
#pragma GCC visibility pop
