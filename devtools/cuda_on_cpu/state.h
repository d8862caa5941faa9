// What the engine knows of a launch in progress: its blocks, their threads, and which of them runs.
#pragma once
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "engine.h"
#include "fiber.h"

namespace cuda_on_cpu {

using Time = uint32_t;  // counts what synchronises: barriers, fences, atomics; one clock for the whole launch

// What a thread knows of the others: writes from before these times are visible to it.
struct Known {
    std::vector<Time> blocks;                        // all threads of each block
    std::vector<std::pair<uint32_t, Time>> threads;  // single threads, by number in the grid, where more is known
};
using Clock = std::shared_ptr<const Known>;  // null: nothing. Never changed once made, so that threads share them

enum class State { READY, AT_BARRIER, AT_WARP, DONE };

struct Thread {
    uint3 index{};
    unsigned id = 0, lane = 0;  // in the block, in the warp
    State state = State::READY;
    Collective op{};
    Site site{"", 0};  // where it waits
    int argument = 0, width = 32;
    unsigned mask = 0;
    uint64_t in = 0, out = 0;
    const unsigned* polled = nullptr;  // while it rests: the number that it waits for, and what it has found
    unsigned loaded = 0;
    bool just_polled = false;
    Fiber fiber{};
    char* stack = nullptr;

    // For the checker.
    Time time = 0;         // of its accesses from now on
    Time lanes[32] = {};   // writes of each lane of its warp from before this are visible to it
    Clock known, pending;  // `pending` is what atomics have read: a fence makes it known
    Clock fenced;          // what was visible at its last fence: its next atomic hands it on
};

// Who read a place since it was last written, as far as later writes need to know.
enum class Readers : uint8_t { NONE, ONE, WARP, BLOCK, SEVERAL_BLOCKS };

// Shadow of 4 bytes of memory, or of fewer where a kernel uses smaller types. Threads are numbered from 1 in the grid.
struct Cell {
    uint32_t writer = 0;
    Time written = 0;
    uint32_t reader = 0;  // one of them, where there are more
    Time read = 0;        // the last time
    uint32_t more = 0;    // WARP: mask of lanes; SEVERAL_BLOCKS: index of their list
    Readers readers = Readers::NONE;
    bool atomic = false;  // the write was
};

struct Region {
    char *low, *high;
    bool shared, writable;
    std::string name;
    std::vector<Cell> cells;
    unsigned grain = 4;  // bytes of a cell
    bool used = false;

    Region(char* low, size_t bytes, bool shared, bool writable, std::string name)
        : low(low), high(low + bytes), shared(shared), writable(writable), name(std::move(name)), cells((bytes + 3) / 4) {}
    bool holds(const char* p) const { return p >= low && p < high; }
    void refine(unsigned wanted) {
        std::vector<Cell> finer(size_t(high - low + wanted - 1) / wanted);
        for (size_t i = 0; i < finer.size(); ++i) finer[i] = cells[i * wanted / grain];
        cells.swap(finer);
        grain = wanted;
    }
};

struct Block {
    unsigned id = 0;
    uint3 index{};
    unsigned alive = 0, waiting = 0;
    std::vector<Thread> threads;
    std::vector<unsigned> ready, resting;  // numbers of threads; resting ones have let others run first
    std::vector<char> dynamic;             // dynamic shared memory
    std::vector<char> statics;             // static shared memory, while another block runs
    Time synced = 0;                       // of the last __syncthreads
    std::vector<Region> shared;            // the checker's: shared memory, the dynamic one last
};

inline Launch launch;
inline size_t block_threads;
inline std::vector<Block> blocks;  // of a cooperative launch all of them, else one
inline Block* here;
inline Thread* self;
inline Time now;
inline std::string error;

// Static shared memory, and the whole of the compiled module in memory.
inline char *statics = nullptr, *image_low = nullptr, *image_high = nullptr;
inline size_t statics_size = 0;

inline unsigned block_count() { return launch.grid[0] * launch.grid[1] * launch.grid[2]; }
inline uint32_t number_in_grid(const Thread& t) { return uint32_t(here->id * block_threads + t.id); }

inline const char* file_name(const char* path) {
    const char* slash = std::strrchr(path, '/');
    return slash ? slash + 1 : path;
}
inline std::string at(Site site) { return std::string(file_name(site.file)) + ":" + std::to_string(site.line); }
inline std::string who() {
    return "thread " + std::to_string(self->id) + " of block " + std::to_string(here->id);
}

inline void fail(const std::string& what) {
    if (error.empty()) error = what;
}
[[noreturn]] void stop();  // the launch is over: the thread is left where it is

}  // namespace cuda_on_cpu
