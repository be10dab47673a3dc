// External memory behind the accelerator's ports (hw/lib/memory.py): one latency, a bandwidth that all ports share, random pauses.
#pragma once
#include <cstdint>
#include <cstring>
#include <deque>
#include <vector>

struct ExternalMemory {
    static constexpr size_t COMMANDS = 16;  // under way at a port

    struct Command {
        uint64_t place, words, ready;
    };
    struct State {
        std::deque<Command> commands;
        std::deque<uint64_t> finishing;  // writes: when each command counts as done
        bool offering = false;
        uint64_t words = 0;
    };

    std::vector<uint8_t> bytes;
    uint64_t latency;
    double words_a_cycle, p_valid, credit = 0;
    std::vector<State> states;
    size_t first = 0;

    ExternalMemory(std::vector<uint8_t> image, size_t ports, uint64_t latency, double words_a_cycle, double p_valid)
        : bytes(std::move(image)), latency(latency), words_a_cycle(words_a_cycle), p_valid(p_valid), states(ports) {}

    // Before the clock's edge, inputs of this cycle: words that reads may take, whether writes are taken.
    template <class Ports, class Random>
    void offer(Ports& ports, Random& random, uint64_t cycle) {
        credit = credit + words_a_cycle > 4 ? 4 : credit + words_a_cycle;
        const size_t count = states.size();
        for (size_t n = 0; n < count; ++n) {
            const size_t k = (first + n) % count;
            auto& port = ports.memory[k];
            State& s = states[k];
            *port.command_ready = s.commands.size() < COMMANDS;
            const bool due = !s.commands.empty() && s.commands.front().ready <= cycle;
            if (port.done) {
                *port.data_ready = due && credit >= 1 && random.chance(p_valid);
                credit -= *port.data_ready;
                *port.done = !s.finishing.empty() && s.finishing.front() <= cycle;
                if (*port.done) s.finishing.pop_front();
            } else {
                if (!s.offering && due && credit >= 1 && random.chance(p_valid)) {
                    credit -= 1, s.offering = true;
                    memcpy(port.data.data, &bytes.at(s.commands.front().place), port.word_bytes);
                }
                *port.data_valid = s.offering;
            }
        }
        if (count) first = (first + 1) % count;
    }

    // What the cycle's handshakes did; true if anything moved.
    template <class Ports>
    bool settle(Ports& ports, uint64_t cycle) {
        bool moved = false;
        for (size_t k = 0; k < states.size(); ++k) {
            auto& port = ports.memory[k];
            State& s = states[k];
            const bool asked = *port.command_valid && *port.command_ready;
            if (*port.data_valid && *port.data_ready) {
                Command& c = s.commands.front();
                if (port.done) memcpy(&bytes.at(c.place), port.data.data, port.word_bytes);
                c.place += port.word_bytes, s.offering = false, ++s.words, moved = true;
                if (!--c.words) {
                    if (port.done) s.finishing.push_back(cycle + latency);
                    s.commands.pop_front();
                }
            } else if (port.done && *port.data_ready) {
                credit += 1;  // nothing was written
            }
            if (asked) {
                uint64_t raw = 0;
                memcpy(&raw, port.command.data, port.command.port_bytes < 8 ? port.command.port_bytes : 8);
                const uint64_t address = raw & ((1ull << port.address_bits) - 1), words = raw >> port.address_bits & 0xffff;
                s.commands.push_back({port.base + address, words, cycle + (port.done ? 1 : latency)});
                moved = true;
            }
        }
        return moved;
    }
};
