// The checker: every load and store of a kernel, against the arrays it was given and against CUDA's rules of order.
//
// The kernel is compiled with -fsanitize=thread, which calls a function at each access, and linked with these functions
// instead of libtsan. Two accesses to one place, at least one of them a write and not both atomic, must be ordered: by
// __syncthreads within a block, __syncwarp within a warp, release and acquire (or fence, atomic, atomic, fence) between
// any two threads. Whether they are follows from the code's synchronisation, not from the order in which threads ran.
#pragma once
#include <algorithm>
#include <cstdio>
#include <map>

#include "state.h"

namespace cuda_on_cpu {

struct BlockRead {
    unsigned block;
    uint32_t reader;  // 0: several
    Time read;
};

// Where a report says the access is: a place in the source, or an address in the code that Python looks up.
struct Place {
    const void* code;
    Site site;
};

inline std::vector<Region> arrays;  // sorted by address, none overlapping
struct SharedVariable {
    size_t offset, size;
    std::string name;
};
inline std::vector<SharedVariable> shared_variables;
inline Region* last_hit = nullptr;
inline std::vector<std::vector<BlockRead>> reader_lists;
inline std::vector<uint32_t> free_lists;
inline std::map<std::pair<const void*, unsigned>, Clock> released;  // by address, and block + 1 if in shared memory
inline uint64_t accesses_left;                           // of the thread that runs, until it lets others run

constexpr uint64_t MANY_ACCESSES = uint64_t(1) << 26;  // a second

// --- order

inline Time of_thread(const Known& known, uint32_t thread) {
    auto found = std::lower_bound(known.threads.begin(), known.threads.end(), std::pair<uint32_t, Time>(thread, 0));
    return found != known.threads.end() && found->first == thread ? found->second : 0;
}

inline Clock join(const Clock& a, const Clock& b) {
    if (!b || a == b) return a;
    if (!a) return b;
    auto result = std::make_shared<Known>();
    result->blocks.resize(a->blocks.size());
    for (size_t i = 0; i < a->blocks.size(); ++i) result->blocks[i] = std::max(a->blocks[i], b->blocks[i]);
    auto keep = [&](uint32_t thread, Time time) {
        if (time > result->blocks[thread / block_threads]) result->threads.push_back({thread, time});
    };
    auto i = a->threads.begin(), j = b->threads.begin();
    while (i != a->threads.end() || j != b->threads.end()) {
        if (j == b->threads.end() || (i != a->threads.end() && i->first < j->first)) {
            keep(i->first, i->second), ++i;
        } else if (i == a->threads.end() || j->first < i->first) {
            keep(j->first, j->second), ++j;
        } else {
            keep(i->first, std::max(i->second, j->second)), ++i, ++j;
        }
    }
    return result;
}

// All that is visible to the running thread, its own writes from before `now` included.
inline Clock visible() {
    auto result = std::make_shared<Known>();
    result->blocks.assign(block_count(), 0);
    result->blocks[here->id] = here->synced;
    const uint32_t me = number_in_grid(*self);
    for (unsigned lane = 0; lane < 32; ++lane) {
        const Time time = lane == self->lane ? now : self->lanes[lane];
        if (time > here->synced) result->threads.push_back({me - self->lane + lane, time});
    }
    return join(result, self->known);
}

// Is what `thread` did at `time` ordered before what the running thread does now?
inline bool ordered(uint32_t thread, Time time) {
    if (thread == number_in_grid(*self)) return true;
    const uint32_t first = uint32_t(here->id * block_threads);
    if (thread - first < block_threads) {
        if (time < here->synced) return true;
        const uint32_t id = thread - first;
        if (id / 32 == self->id / 32 && time < self->lanes[id % 32]) return true;
    }
    if (!self->known) return false;
    return time < self->known->blocks[thread / block_threads] || time < of_thread(*self->known, thread);
}

inline bool block_ordered(unsigned block, Time time) {
    return block == here->id ? time < here->synced : self->known && time < self->known->blocks[block];
}

inline bool reads_ordered(const Cell& c) {
    const uint32_t reader = c.reader - 1;
    switch (c.readers) {
        case Readers::NONE: return true;
        case Readers::ONE: return ordered(reader, c.read);
        case Readers::BLOCK: return block_ordered(unsigned(reader / block_threads), c.read);
        case Readers::WARP: {
            const uint32_t first = reader - uint32_t(reader % block_threads % 32);
            for (unsigned lane = 0; lane < 32; ++lane)
                if (c.more >> lane & 1 && !ordered(first + lane, c.read)) return false;
            return true;
        }
        case Readers::SEVERAL_BLOCKS:
            for (const BlockRead& r : reader_lists[c.more])
                if (!(r.reader ? ordered(r.reader - 1, r.read) : block_ordered(r.block, r.read))) return false;
            return true;
    }
    return false;
}

inline void forget_readers(Cell& c) {
    if (c.readers == Readers::SEVERAL_BLOCKS) free_lists.push_back(c.more);
    c.readers = Readers::NONE;
    c.reader = 0;
}

inline void add_reader(Cell& c) {
    const uint32_t me = number_in_grid(*self) + 1;
    auto block_of = [](uint32_t reader) { return unsigned((reader - 1) / block_threads); };
    auto lane_bit = [](uint32_t reader) { return 1u << (reader - 1) % block_threads % 32; };
    if (reads_ordered(c)) {  // a write after this read comes after those before it
        forget_readers(c);
        c.readers = Readers::ONE;
    } else if (c.readers == Readers::SEVERAL_BLOCKS) {
        auto& list = reader_lists[c.more];
        auto mine = std::find_if(list.begin(), list.end(), [](const BlockRead& r) { return r.block == here->id; });
        if (mine == list.end()) {
            list.push_back({here->id, me, self->time});
        } else {
            *mine = {here->id, mine->reader == me ? me : 0, self->time};
        }
    } else if (block_of(c.reader) != here->id) {
        if (free_lists.empty()) {
            free_lists.push_back(uint32_t(reader_lists.size()));
            reader_lists.emplace_back();
        }
        const uint32_t list = free_lists.back();
        free_lists.pop_back();
        const uint32_t other = c.readers == Readers::ONE ? c.reader : 0;
        reader_lists[list] = {{block_of(c.reader), other, c.read}, {here->id, me, self->time}};
        c.readers = Readers::SEVERAL_BLOCKS;
        c.more = list;
    } else {
        const bool same_warp = (c.reader - 1) % block_threads / 32 == self->id / 32;
        if (c.readers == Readers::BLOCK || !same_warp) {
            c.readers = Readers::BLOCK;
        } else {
            c.more = (c.readers == Readers::WARP ? c.more : lane_bit(c.reader)) | lane_bit(me);
            c.readers = Readers::WARP;
        }
    }
    c.reader = me;
    c.read = self->time;
}

// --- accesses

[[noreturn]] inline void report(const std::string& what, Place place, uint32_t other = 0) {
    std::string text = what + " by " + who();
    if (other) {
        text += ", against thread " + std::to_string((other - 1) % block_threads) + " of block " +
                std::to_string((other - 1) / block_threads);
    }
    if (place.code) {
        char offset[32];
        std::snprintf(offset, sizeof offset, " @+0x%zx", size_t(static_cast<const char*>(place.code) - image_low - 1));
        text += offset;
    } else {
        text += " at " + at(place.site);
    }
    fail(text);
    stop();
}

inline std::string where(const Region& r, const char* p) { return r.name + ", byte " + std::to_string(p - r.low); }

inline Region* find(const char* p) {
    if (last_hit && last_hit->holds(p)) return last_hit;
    for (Region& r : here->shared)
        if (r.holds(p)) return last_hit = &r;
    auto after = std::upper_bound(arrays.begin(), arrays.end(), p, [](const char* p, const Region& r) { return p < r.low; });
    if (after != arrays.begin() && (after - 1)->holds(p)) return last_hit = &*(after - 1);
    return nullptr;
}

[[noreturn]] inline void report_stray(const char* p, bool write, Place place) {
    const Region* near = nullptr;
    auto consider = [&](const Region& r) {
        if (p >= r.high && p < r.high + 4096 && (!near || r.high > near->high)) near = &r;
    };
    for (const Region& r : here->shared) consider(r);
    for (const Region& r : arrays) consider(r);
    const std::string what = write ? "write" : "read";
    if (!p) report(what + " through a null pointer", place);
    if (near) report(what + " " + std::to_string(p - near->high) + " bytes past the end of " + near->name, place);
    report(what + " outside of every array that the launch was given", place);
}

inline void check(const void* address, unsigned size, bool write, bool atomic, Place place) {
    if (!self) return;
    char* p = static_cast<char*>(const_cast<void*>(address));
    if (p >= self->stack && p < self->stack + STACK) return;
    if (--accesses_left == 0) report("no end is in sight: " + std::to_string(MANY_ACCESSES) + " accesses", place);
    Region* r = find(p);
    if (!r) {
        if (p >= image_low && p < image_high) return;  // constants of the module
        report_stray(p, write, place);
    }
    if (p + size > r->high) report((write ? "write past the end of " : "read past the end of ") + r->name, place);
    if (write && !r->writable) report("write to a read-only array: " + where(*r, p), place);
    const size_t offset = size_t(p - r->low);
    const unsigned wanted = (offset | size) % 4 == 0 ? 4 : (offset | size) % 2 == 0 ? 2 : 1;
    if (wanted < r->grain) r->refine(wanted);
    r->used = true;
    const uint32_t me = number_in_grid(*self) + 1;
    for (size_t i = offset / r->grain; i * r->grain < offset + size; ++i) {
        Cell& c = r->cells[i];
        char* byte = r->low + i * r->grain;
        if (!c.writer) {
            if (!write && r->shared) report("read of shared memory that was never written: " + where(*r, byte), place);
        } else if (c.writer != me && !(atomic && c.atomic) && !ordered(c.writer - 1, c.written)) {
            report((write ? "race, write after write: " : "race, read after write: ") + where(*r, byte), place, c.writer);
        }
        if (write) {
            if (c.readers != Readers::NONE) {
                if (!reads_ordered(c)) report("race, write after read: " + where(*r, byte), place, c.reader);
                forget_readers(c);
            }
            c.writer = me;
            c.written = self->time;
            c.atomic = atomic;
        } else if (!atomic && !(c.readers == Readers::ONE && c.reader == me && c.read == self->time)) {
            add_reader(c);
        }
    }
}

inline Clock& location(const void* p) { return released[{p, is_shared(p) ? here->id + 1 : 0}]; }

inline void check_poll(const void* p, unsigned size, Site site) {
    self->known = join(self->known, location(p));
    self->time = ++now;
    check(p, size, false, true, {nullptr, site});
}

inline void check_atomic(const void* p, unsigned size, Access access, Order order, Site site) {
    self->time = ++now;
    check(p, size, true, true, {nullptr, site});
    Clock& known_here = location(p);
    const bool acquires = order == Order::ACQUIRE_RELEASE;
    const bool releases = order == Order::RELEASE || order == Order::ACQUIRE_RELEASE;
    if (access == Access::STORE) {
        known_here = nullptr;
    } else {
        Clock& learns = acquires ? self->known : self->pending;
        learns = join(learns, known_here);
    }
    ++now;
    known_here = join(known_here, releases ? visible() : self->fenced);
    self->time = ++now;
}

inline void check_fence() {
    ++now;
    self->known = join(self->known, self->pending);
    self->pending = nullptr;
    self->fenced = visible();
    self->time = now;
}

// The threads that `waits` picks have met: each knows from now on what any of them knew.
template <class Waits>
void check_met(Thread* threads, size_t n, Waits waits) {
    Clock known, pending, fenced;
    for (size_t i = 0; i < n; ++i) {
        const Thread& t = threads[i];
        if (!waits(t)) continue;
        known = join(known, t.known), pending = join(pending, t.pending), fenced = join(fenced, t.fenced);
    }
    ++now;
    for (size_t i = 0; i < n; ++i) {
        Thread& t = threads[i];
        if (!waits(t)) continue;
        t.known = known, t.pending = pending, t.fenced = fenced;
        t.time = now;
    }
}

inline void check_lanes_met(Thread* lanes, unsigned n, unsigned met) {
    auto waits = [=](const Thread& t) { return met >> t.lane & 1; };
    check_met(lanes, n, waits);
    Time joined[32] = {};
    for (unsigned j = 0; j < n; ++j)
        if (met >> j & 1)
            for (unsigned k = 0; k < 32; ++k) joined[k] = std::max(joined[k], lanes[j].lanes[k]);
    for (unsigned k = 0; k < 32; ++k)
        if (met >> k & 1) joined[k] = now;
    for (unsigned j = 0; j < n; ++j)
        if (met >> j & 1) std::copy(joined, joined + 32, lanes[j].lanes);
}

// --- launches and blocks

inline void add_array(char* low, size_t bytes, bool writable, std::string name) {
    char* high = low + bytes;
    // Views of one array are checked as one: what they share has one shadow.
    for (size_t i = arrays.size(); i-- > 0;) {
        Region& r = arrays[i];
        if (r.low >= high || r.high <= low) continue;
        low = std::min(low, r.low), high = std::max(high, r.high);
        writable |= r.writable;
        name = r.name + " / " + name;
        arrays.erase(arrays.begin() + std::ptrdiff_t(i));
    }
    auto after = std::upper_bound(arrays.begin(), arrays.end(), low, [](const char* p, const Region& r) { return p < r.low; });
    arrays.insert(after, Region(low, size_t(high - low), false, writable, std::move(name)));
}

inline void check_launch_ends() {
    arrays.clear(), reader_lists.clear(), free_lists.clear(), released.clear();
    last_hit = nullptr;
}

// Each block begins with shared memory that nobody has written.
inline void check_block_begins(Block& b) {
    if (b.shared.empty()) {
        for (const SharedVariable& v : shared_variables)
            b.shared.emplace_back(statics + v.offset, v.size, true, true, v.name);
        b.shared.emplace_back(b.dynamic.data(), b.dynamic.size(), true, true, "dynamic shared memory");
    }
    for (Region& r : b.shared) {
        if (r.used) std::fill(r.cells.begin(), r.cells.end(), Cell{});
        r.used = false;
    }
}

}  // namespace cuda_on_cpu
