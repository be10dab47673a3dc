// Runs frames back to back through a Verilated accelerator and records every watched stream.
//
// The generated header ports.h names the top class and lists its streams; this file knows nothing of any network.
// Usage: accelerator IMAGE_BEATS OUT_FOLDER FRAMES SEED P_VALID P_READY WATCHDOG RECORD MEMORY LATENCY WORDS P_MEMORY
//   IMAGE_BEATS  the input's beats of all frames, one after the other
//   P_VALID, P_READY  chance per cycle that the source offers and that the sinks take, 0..1; 1 is full rate
//   WATCHDOG     cycles without any transfer after which the run is given up
//   RECORD       1: write every watched stream to OUT_FOLDER/<index>.bin; 0: outputs only
//   MEMORY       what lies in external memory; LATENCY cycles to a command's first word, WORDS a cycle over all ports, P_MEMORY the chance
//                per cycle that a port gives or takes a word
// Writes OUT_FOLDER/stats.txt. Exit status: 0 done, 3 no progress (the state of every stream is on standard error).
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "memory.h"
#include "ports.h"
#include "verilated.h"

double sc_time_stamp() { return 0; }

namespace {

struct Random {  // xorshift64*: the same numbers on every machine
    uint64_t state;
    bool chance(double p) {
        if (p >= 1.0) return true;
        state ^= state >> 12, state ^= state << 25, state ^= state >> 27;
        return double((state * 2685821657736338717ull) >> 11) * (1.0 / 9007199254740992.0) < p;
    }
};

struct Recorder {
    FILE* file = nullptr;
    const uint8_t* payload = nullptr;
    size_t bytes = 0, port_bytes = 0;
    uint64_t beats = 0, stalled = 0;
    std::vector<uint64_t> ends;  // the cycle of each frame's last beat
    void open(const std::string& path) {
        file = fopen(path.c_str(), "wb");
        if (!file) {
            perror(path.c_str());
            exit(4);
        }
        setvbuf(file, nullptr, _IOFBF, 1 << 16);
    }
    void take() {
        static const uint8_t zeros[8] = {0};
        ++beats;
        if (!file) return;
        size_t written = fwrite(payload, 1, port_bytes, file);
        if (port_bytes < bytes) written += fwrite(zeros, 1, bytes - port_bytes, file);
        if (written != bytes) {
            perror("writing a stream");
            exit(4);
        }
    }
    void close() {
        if (file && fclose(file)) {
            perror("writing a stream");
            exit(4);
        }
    }
};

std::vector<uint8_t> read_all(const char* path) {
    FILE* f = fopen(path, "rb");
    if (!f) {
        perror(path);
        exit(4);
    }
    std::vector<uint8_t> data;
    uint8_t buffer[1 << 16];
    for (size_t n; (n = fread(buffer, 1, sizeof buffer, f)) > 0;) data.insert(data.end(), buffer, buffer + n);
    fclose(f);
    return data;
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 13) {
        fprintf(stderr, "usage: %s IMAGE_BEATS OUT_FOLDER FRAMES SEED P_VALID P_READY WATCHDOG RECORD MEMORY LATENCY WORDS P_MEMORY\n", argv[0]);
        return 2;
    }
    const std::vector<uint8_t> image = read_all(argv[1]);
    const std::string folder = argv[2];
    const uint64_t frames = strtoull(argv[3], nullptr, 10);
    Random random{strtoull(argv[4], nullptr, 10) * 2654435761u + 88172645463325252ull};
    const double p_valid = atof(argv[5]), p_ready = atof(argv[6]);
    const uint64_t watchdog = strtoull(argv[7], nullptr, 10);
    const bool record = atoi(argv[8]) != 0;

    VerilatedContext context;
    Top top(&context);
    Ports ports(top);
    ExternalMemory memory(read_all(argv[9]), ports.memory.size(), strtoull(argv[10], nullptr, 10), atof(argv[11]), atof(argv[12]));
    std::vector<Recorder> probes(PROBES), outputs(OUTPUTS);
    for (int k = 0; k < PROBES; ++k) {
        probes[k].payload = ports.probe[k].data, probes[k].bytes = ports.probe[k].bytes, probes[k].port_bytes = ports.probe[k].port_bytes;
        if (record) probes[k].open(folder + "/" + std::to_string(k) + ".bin");
    }
    std::vector<std::vector<uint64_t>> first(OUTPUTS), last(OUTPUTS);
    for (int k = 0; k < OUTPUTS; ++k) {
        const Stream& s = ports.output[k];
        outputs[k].payload = s.payload.data, outputs[k].bytes = s.payload.bytes, outputs[k].port_bytes = s.payload.port_bytes;
        outputs[k].open(folder + "/out" + std::to_string(k) + ".bin");
    }

    const uint64_t in_beats = image.size() / ports.input.payload.bytes;
    std::vector<uint64_t> frame_start;
    uint64_t sent = 0, cycle = 0, quiet = 0, done = 0, shown = 0;
    bool offering = false;
    for (int k = 0; k < 5; ++k) top.rst_in = k < 4, top.clk = 0, top.eval(), top.clk = 1, top.eval();
    while (done < OUTPUTS && quiet < watchdog) {
        top.clk = 0;
        if (!offering && sent < in_beats && random.chance(p_valid)) {
            offering = true;
            memcpy(ports.input.payload.data, &image[sent * ports.input.payload.bytes], ports.input.payload.port_bytes);
        }
        *ports.input.valid = offering;
        for (int k = 0; k < OUTPUTS; ++k) *ports.output[k].ready = random.chance(p_ready);
        memory.offer(ports, random, cycle);
        top.eval();
        bool moved = memory.settle(ports, cycle);
        if (offering && *ports.input.ready) {
            if (sent % IN_BEATS == 0) frame_start.push_back(cycle);
            ++sent, offering = false, moved = true;
        }
        for (int word = 0; word < (PROBES + 31) / 32; ++word) {
            const uint32_t valid = ports.probe_valid(word), ready = ports.probe_ready(word);
            for (uint32_t fire = valid & ready; fire; fire &= fire - 1) {
                const int k = word * 32 + __builtin_ctz(fire);
                probes[k].take(), moved = true;
                if (probes[k].beats % PROBE_BEATS[k] == 0) probes[k].ends.push_back(cycle);
            }
            for (uint32_t stuck = valid & ~ready; stuck; stuck &= stuck - 1) ++probes[word * 32 + __builtin_ctz(stuck)].stalled;
        }
        done = 0;
        for (int k = 0; k < OUTPUTS; ++k) {
            const Stream& s = ports.output[k];
            const uint64_t total = s.beats * frames;
            if (*s.valid && *s.ready && outputs[k].beats < total) {
                if (outputs[k].beats % s.beats == 0) first[k].push_back(cycle);
                outputs[k].take(), moved = true;
                if (outputs[k].beats % s.beats == 0) last[k].push_back(cycle);
            }
            done += outputs[k].beats == total;
        }
        top.clk = 1;
        top.eval();
        ++cycle;
        quiet = moved ? 0 : quiet + 1;
        uint64_t finished = frames;
        for (int k = 0; k < OUTPUTS; ++k) finished = last[k].size() < finished ? last[k].size() : finished;
        for (; shown < finished; ++shown) fprintf(stderr, "frame %lu %lu\n", (unsigned long)shown + 1, (unsigned long)cycle);
    }
    for (auto& r : probes) r.close();
    for (auto& r : outputs) r.close();
    FILE* stats = fopen((folder + "/stats.txt").c_str(), "w");
    if (!stats) {
        perror("stats.txt");
        return 4;
    }
    for (size_t k = 0; k < memory.states.size(); ++k) fprintf(stats, "memory %zu %lu\n", k, (unsigned long)memory.states[k].words);
    fprintf(stats, "cycles %lu\nsent %lu\n", (unsigned long)cycle, (unsigned long)sent);
    for (uint64_t c : frame_start) fprintf(stats, "start %lu\n", (unsigned long)c);
    for (int k = 0; k < OUTPUTS; ++k)
        for (size_t f = 0; f < last[k].size(); ++f)
            fprintf(stats, "output %d %lu %lu\n", k, (unsigned long)first[k][f], (unsigned long)last[k][f]);
    for (int k = 0; k < PROBES; ++k) {
        fprintf(stats, "ends %d", k);
        for (uint64_t c : probes[k].ends) fprintf(stats, " %lu", (unsigned long)c);
        fprintf(stats, "\n");
    }
    for (int k = 0; k < PROBES; ++k)
        fprintf(stats, "probe %d %lu %lu %d %d\n", k, (unsigned long)probes[k].beats, (unsigned long)probes[k].stalled,
                int(ports.probe_valid(k / 32) >> (k % 32) & 1), int(ports.probe_ready(k / 32) >> (k % 32) & 1));
    if (fclose(stats)) {
        perror("stats.txt");
        return 4;
    }
    top.final();
    return done == OUTPUTS ? 0 : 3;
}
